//! What of a cluster is on this machine: what there is to be removed, and once it has been, that must be nothing.
//!
//! Owns the list of places, and only looks. The locks do not count: whoever removes a cluster holds them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::record::{self, RUN, Record};
use super::{cgroup, down, lock, network, settings};

/// Whether there is anything to remove. `own` is a checkout's cluster folder.
pub(super) fn any(own: &Path) -> Result<bool> {
    Ok(!of_machine()?.is_empty() || !of_folder(own)?.is_empty())
}

/// Fails if anything is left of the cluster that `before` describes, or of the one in `own`, a checkout's cluster folder.
pub(super) fn none(own: &Path, before: &Record) -> Result<()> {
    let mut left = of_machine()?;
    left.extend(of_folder(own)?);
    if before.checkout.is_absolute() {
        left.extend(of_folder(&down::state_of(&before.checkout))?);
    }
    if before.boot == record::boot() {
        left.extend(of_record(before, &settings::current()));
    }
    left.sort();
    left.dedup();
    if !left.is_empty() {
        bail!("the cluster is gone, but not all of it:\n  {}", left.join("\n  "));
    }
    Ok(())
}

/// What is found by its name, whoever made it.
fn of_machine() -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(RUN).into_iter().flatten().flatten() {
        if !lock::is_lock(&entry.file_name()) {
            left.push(format!("{} is there", entry.path().display()));
        }
    }
    for group in cgroup::remains()? {
        left.push(format!("the control group {} is there", group.display()));
    }
    for place in [network::namespace_file(), network::host_end()] {
        if place.exists() {
            left.push(format!("{} is there", place.display()));
        }
    }
    Ok(left)
}

/// What a checkout has of it.
fn of_folder(state: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for place in [state, &down::kubeconfig_beside(state)] {
        if place.exists() {
            left.push(format!("{} is there", place.display()));
        }
    }
    for mount in down::mounts_below(state)? {
        left.push(format!("{} is mounted", mount.display()));
    }
    Ok(left)
}

/// What was written down to be put back, where it is not as it was.
fn of_record(before: &Record, now: &BTreeMap<String, String>) -> Vec<String> {
    let mut left = Vec::new();
    for (name, value) in &before.settings {
        if let Some(now) = now.get(name).filter(|now| *now != value) {
            left.push(format!("{name} is {now} and was {value}"));
        }
    }
    for folder in &before.folders {
        // One that is not empty is in use by somebody else.
        if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) {
            left.push(format!("the empty folder {} is there", folder.display()));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_a_kubeconfig_are_found() {
        let local = tempfile::tempdir().unwrap();
        let state = local.path().join("cluster");
        assert!(of_folder(&state).unwrap().is_empty());
        fs::create_dir(&state).unwrap();
        fs::write(local.path().join("kubeconfig"), "").unwrap();
        let left = of_folder(&state).unwrap();
        assert!(left.len() == 2 && left[1].contains("kubeconfig"), "{left:?}");
        assert!(
            !of_folder(Path::new("/proc")).unwrap().is_empty(),
            "it is mounted"
        );
    }

    #[test]
    fn settings_and_folders_that_were_not_put_back_are_found() {
        let parent = tempfile::tempdir().unwrap();
        let (empty, used) = (parent.path().join("empty"), parent.path().join("used"));
        fs::create_dir(&empty).unwrap();
        fs::create_dir_all(used.join("by somebody else")).unwrap();
        let before = Record {
            settings: BTreeMap::from([("vm/one".into(), "1".into()), ("vm/two".into(), "2".into())]),
            folders: vec![empty, used, parent.path().join("gone")],
            ..Record::default()
        };
        let now = BTreeMap::from([("vm/one".into(), "1".into()), ("vm/two".into(), "8".into())]);
        let left = of_record(&before, &now);
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(left[0], "vm/two is 8 and was 2");
        assert!(left[1].ends_with("empty is there"), "{left:?}");
    }
}
