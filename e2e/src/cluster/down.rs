//! Taking the cluster away, however much of it there is.
//!
//! Owns the order: processes first, since they hold everything else. Works for a whole cluster, for half of one whose
//! making was killed, and for one of another checkout. Invariant: nothing is ended or removed that the cluster did not
//! make; afterwards nothing of it is left.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::record::{self, RUN, Record};
use super::{cgroup, lock, network, settings};

/// Removes whatever cluster there is on this machine. `own` is this checkout's cluster folder.
pub fn remove(own: &Path) -> Result<()> {
    let record = Record::load().unwrap_or_default();
    cgroup::remove().context("cannot end the cluster's processes")?;
    network::remove().context("cannot remove the cluster's network")?;
    if record.boot == record::boot() {
        settings::restore(&record.settings)?;
    }
    let mut states = vec![own.to_owned()];
    if record.checkout.is_absolute() {
        states.push(state_of(&record.checkout));
    }
    for state in states {
        remove_state(&state)?;
    }
    for folder in &record.folders {
        // Only empty ones go: somebody else may use the place by now.
        let _ = fs::remove_dir(folder);
    }
    remove_run()
}

/// The cluster folder of a checkout, which need not be this one.
pub(super) fn state_of(checkout: &Path) -> PathBuf {
    checkout.join(".local/cluster")
}

/// The kubeconfig of the cluster in a cluster folder.
pub(super) fn kubeconfig_beside(state: &Path) -> PathBuf {
    state.with_file_name("kubeconfig")
}

fn remove_state(state: &Path) -> Result<()> {
    if state.exists() {
        // Removing across a mount would destroy what is mounted.
        if let Some(mount) = mounts_below(state)?.first() {
            bail!("{} is still mounted; unmount it and try again", mount.display());
        }
        fs::remove_dir_all(state).with_context(|| format!("cannot remove {}", state.display()))?;
    }
    let kubeconfig = kubeconfig_beside(state);
    match fs::remove_file(&kubeconfig) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", kubeconfig.display()))
        }
        _ => Ok(()),
    }
}

/// The locks stay: whoever takes the cluster away holds them, and may make another.
fn remove_run() -> Result<()> {
    let Ok(entries) = fs::read_dir(RUN) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if lock::is_lock(&entry.file_name()) {
            continue;
        }
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// What is mounted in a folder, or on it.
pub(super) fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let places = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    Ok(places.filter(|place| place.starts_with(folder)).collect())
}

/// Blanks and the like are written as `\040` in the kernel's list.
fn unescape(place: &str) -> PathBuf {
    let mut plain = place.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, character);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_their_real_names() {
        assert_eq!(unescape("/a\\040b"), PathBuf::from("/a b"));
        assert!(
            mounts_below(Path::new("/proc"))
                .unwrap()
                .contains(&PathBuf::from("/proc"))
        );
        assert!(mounts_below(Path::new("/proc/no/such")).unwrap().is_empty());
    }
}
