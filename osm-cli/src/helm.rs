//! The `helm` program: where it is, whether it is new enough, and running it.
//!
//! Release state is Helm's; this program never writes it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{env, fmt};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use tokio::process::Command;

use crate::Global;

/// The oldest Helm whose behaviour this program relies on.
const OLDEST: Version = Version { major: 3, minor: 8 };

/// A Helm version, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Reads `v3.14.2`, `3.14`, `v3.8.0-rc.1+g12`.
    fn parse(text: &str) -> Option<Version> {
        let mut numbers = text.trim().trim_start_matches('v').split(['.', '-', '+']);
        Some(Version {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }

    fn check(self, path: &Path) -> Result<()> {
        if self < OLDEST || self.major > OLDEST.major {
            bail!(
                "helm at {} is version {self}, but osm needs 3.x from {OLDEST} on: install one, or name it with --helm",
                path.display()
            );
        }
        Ok(())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A release, as `helm list` shows it.
#[derive(Debug, Deserialize)]
pub(crate) struct Release {
    pub(crate) name: String,
    pub(crate) status: String,
}

/// A usable `helm`.
pub(crate) struct Helm {
    path: PathBuf,
    /// Flags that name the cluster.
    cluster: Vec<String>,
    verbose: bool,
}

impl Helm {
    /// Finds `helm` and checks its version.
    pub(crate) async fn find(global: &Global) -> Result<Helm> {
        let path = match &global.helm {
            Some(path) => path.clone(),
            None => search("helm").ok_or_else(|| {
                anyhow!("helm was not found on the PATH: install Helm 3, or name the program with --helm")
            })?,
        };
        let output = Command::new(&path)
            .args(["version", "--template", "{{.Version}}"])
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| {
                format!(
                    "Could not run helm at {}: install Helm 3, or name the program with --helm",
                    path.display()
                )
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = Version::parse(&text).ok_or_else(|| {
            anyhow!(
                "{} does not say its version as Helm 3 does: install Helm 3, or name the program with --helm",
                path.display()
            )
        })?;
        version.check(&path)?;

        let mut cluster = Vec::new();
        if let Some(kubeconfig) = &global.kubeconfig {
            cluster.push(format!("--kubeconfig={}", kubeconfig.display()));
        }
        if let Some(context) = &global.context {
            cluster.push(format!("--kube-context={context}"));
        }
        Ok(Helm {
            path,
            cluster,
            verbose: global.verbose,
        })
    }

    /// Runs Helm and returns what it printed.
    pub(crate) async fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .args(&self.cluster)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.verbose {
            eprintln!("  + {:?}", command.as_std());
        }
        let output = command
            .output()
            .await
            .with_context(|| format!("Could not run helm at {}", self.path.display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let text = text.trim().trim_start_matches("Error: ");
        bail!(
            "helm refused: {}",
            if text.is_empty() { "it said nothing" } else { text }
        )
    }

    /// The release of that name in that namespace, whatever its state.
    pub(crate) async fn release(&self, name: &str, namespace: &str) -> Result<Option<Release>> {
        let filter = format!("^{name}$");
        let text = self
            .run([
                "list",
                "--all",
                "--namespace",
                namespace,
                "--filter",
                &filter,
                "--output",
                "json",
            ])
            .await?;
        let releases: Vec<Release> =
            serde_json::from_str(&text).context("Could not read the list of releases from helm")?;
        Ok(releases.into_iter().find(|release| release.name == name))
    }
}

/// The first executable file of that name on the PATH.
fn search(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_program = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_judged() {
        let path = Path::new("helm");
        for good in ["v3.8.0", "v3.22", "3.14.2", "v3.9.0-rc.1+g1234567"] {
            assert!(Version::parse(good).expect(good).check(path).is_ok(), "{good}");
        }
        for bad in ["v3.7.2", "v2.17.0", "v4.0.1"] {
            let error = Version::parse(bad)
                .expect(bad)
                .check(path)
                .expect_err(bad)
                .to_string();
            assert!(error.contains("needs 3.x from 3.8 on"), "{error}");
        }
        for unreadable in ["", "Client: &version.Version{}", "v3"] {
            assert_eq!(Version::parse(unreadable), None, "{unreadable}");
        }
    }
}
