//! The user's settings of the program: `~/.osm/config.yaml`, or the file `$OSM_CONFIG` names.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) install: Install,
}

/// How the mesh is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Install {
    /// `self-hosted`, or `managed`: someone else installs, upgrades and uninstalls the mesh.
    pub(crate) kind: String,
    /// Name of the distribution.
    pub(crate) distribution: String,
    /// Namespace of the control plane.
    pub(crate) namespace: String,
}

impl Default for Install {
    fn default() -> Install {
        Install {
            kind: "self-hosted".to_owned(),
            distribution: String::new(),
            namespace: "osm-system".to_owned(),
        }
    }
}

impl Config {
    /// Reads the settings; the defaults when there is no file.
    pub(crate) fn read() -> Result<Config> {
        let Some(path) = path() else {
            return Ok(Config::default());
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(error) => return Err(error).with_context(|| format!("Could not read {}", path.display())),
        };
        let config: Config = serde_saphyr::from_str(&text).with_context(|| {
            format!(
                "{} is not a configuration of osm: correct or remove it",
                path.display()
            )
        })?;
        if !matches!(config.install.kind.as_str(), "self-hosted" | "managed") {
            bail!(
                "{}: install.kind is {:?}: it must be self-hosted or managed",
                path.display(),
                config.install.kind
            );
        }
        Ok(config)
    }

    /// Refuses what only the one who manages the mesh may do.
    pub(crate) fn refuse_if_managed(&self, what: &str) -> Result<()> {
        if self.install.kind == "managed" {
            bail!("OSM CANNOT be {what} in a managed environment");
        }
        Ok(())
    }
}

fn path() -> Option<PathBuf> {
    env::var_os("OSM_CONFIG")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".osm/config.yaml")))
}
