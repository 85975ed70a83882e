//! What this machine knows of the cluster running on it, whichever checkout made it.
//!
//! Owns the folder `/run/osm-e2e`: the record, the locks (`lock`), and containerd's socket (short enough for any checkout).
//! There is one local cluster a machine. Invariant: a thing outside the checkout is written into the record before, or
//! is recognisable by its name without it, so that a run killed at any moment can be cleaned up after.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::process::Process;

/// The machine-wide folder.
pub const RUN: &str = "/run/osm-e2e";

/// A cluster on this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct Record {
    /// The checkout it belongs to.
    pub checkout: PathBuf,
    /// What it was made of; another fingerprint means that it must be made anew.
    pub fingerprint: String,
    /// The boot it was made in: after another one, nothing of it but files can be left.
    pub boot: String,
    /// Kernel settings as they were before, by their path below `/proc/sys`.
    pub settings: BTreeMap<String, String>,
    /// Empty folders made as mount points.
    pub folders: Vec<PathBuf>,
    /// The programs of the cluster itself, in the order they were started.
    pub processes: Vec<Process>,
}

impl Record {
    /// The record of this machine, if there is one. One that cannot be read counts as none: what it described is found
    /// by name.
    pub fn load() -> Option<Self> {
        serde_json::from_slice(&fs::read(path()).ok()?).ok()
    }

    /// Writes the record so that a reader sees either the old or the new one.
    pub fn save(&self) -> Result<()> {
        fs::create_dir_all(RUN).with_context(|| format!("cannot create {RUN}: are you root?"))?;
        let draft = Path::new(RUN).join("cluster.json.new");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {draft:?}"))?;
        fs::rename(&draft, path()).with_context(|| format!("cannot write {:?}", path()))
    }

    /// The process of that name, if it still runs.
    pub fn running(&self, name: &str) -> Option<&Process> {
        self.processes
            .iter()
            .rev()
            .find(|process| process.name == name)
            .filter(|process| process.is_running())
    }
}

fn path() -> PathBuf {
    Path::new(RUN).join("cluster.json")
}

/// Identifies this boot of the machine.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
