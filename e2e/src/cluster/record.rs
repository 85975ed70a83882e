//! What this machine knows of the cluster running on it, whichever checkout made it.
//!
//! Owns the folder `/run/osm-e2e`: the record, the two locks, and containerd's socket (short enough for any checkout).
//! There is one local cluster a machine. Invariant: a thing outside the checkout is written into the record before, or
//! is recognisable by its name without it, so that a run killed at any moment can be cleaned up after.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
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

/// Held while the cluster is made or removed; waits for another such run to end.
pub fn lock_for_change() -> Result<File> {
    let file = lock_file("lock")?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        eprintln!("   ...  another `osm-e2e cluster` command is at work on this machine; waiting for it");
        file.lock().context("cannot lock the cluster")?;
    }
    Ok(file)
}

/// Held by whoever works with the cluster: while anyone does, no other checkout may take the machine over.
pub fn lock_for_use() -> Result<File> {
    let file = lock_file("in-use")?;
    file.lock_shared().context("cannot lock the cluster for use")?;
    Ok(file)
}

/// Waits a little for the users of another checkout's cluster to end, and refuses to take it from them if they do not.
pub fn lock_out_users(owner: &Path) -> Result<File> {
    let file = lock_file("in-use")?;
    for _ in 0..50 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cluster"),
        }
    }
    bail!(
        "the cluster of {} is in use: wait for its tests or demo to end, or end them, and try again",
        owner.display()
    )
}

fn lock_file(name: &str) -> Result<File> {
    fs::create_dir_all(RUN).with_context(|| format!("cannot create {RUN}: are you root?"))?;
    let path = Path::new(RUN).join(name);
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}
