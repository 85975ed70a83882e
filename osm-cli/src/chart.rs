//! The chart that gets installed: the one inside the program, or the user's own folder.
//!
//! Invariant: values are checked against, custom resources applied from, and Helm run on the very same chart.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use include_dir::{Dir, include_dir};
use tempfile::TempDir;

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/osm");

/// A chart on disk.
pub(crate) struct Chart {
    path: PathBuf,
    /// Removed when the chart is dropped.
    _unpacked: Option<TempDir>,
}

impl Chart {
    /// The user's chart, or the embedded one.
    pub(crate) fn open(path: Option<&Path>) -> Result<Chart> {
        let Some(path) = path else {
            let unpacked = tempfile::Builder::new()
                .prefix("osm-chart-")
                .tempdir()
                .context("Could not make a folder for the chart")?;
            EMBEDDED
                .extract(unpacked.path())
                .context("Could not unpack the chart")?;
            return Ok(Chart {
                path: unpacked.path().to_owned(),
                _unpacked: Some(unpacked),
            });
        };
        if !path.join("Chart.yaml").is_file() {
            bail!(
                "--osm-chart-path {} is not the folder of a chart (it has no Chart.yaml): unpack an archive first, \
                 or leave the flag out to use the chart inside this program",
                path.display()
            );
        }
        Ok(Chart {
            path: path.to_owned(),
            _unpacked: None,
        })
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The text of one of its files.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).with_context(|| format!("Could not read {}", path.display()))
    }

    /// Its custom resource definitions, by file name.
    pub(crate) fn crds(&self) -> Result<Vec<(String, String)>> {
        let folder = self.path.join("crds");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("Could not read {}", folder.display()))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        names
            .into_iter()
            .map(|name| Ok((name.clone(), self.read(&format!("crds/{name}"))?)))
            .collect()
    }
}
