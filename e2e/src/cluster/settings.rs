//! Kernel settings of the whole machine that a node needs otherwise.
//!
//! Owns the list. The kubelet changes some by itself; all are written down before and put back by `cluster down`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Below `/proc/sys`. Those with a value are raised to at least that; the others the kubelet sets as it likes.
const SETTINGS: [(&str, Option<u64>); 8] = [
    // Every sidecar and every container's shim watches files.
    ("fs/inotify/max_user_instances", Some(8192)),
    ("fs/inotify/max_user_watches", Some(1 << 20)),
    ("vm/overcommit_memory", None),
    ("vm/panic_on_oom", None),
    ("kernel/panic", None),
    ("kernel/panic_on_oops", None),
    ("kernel/keys/root_maxkeys", None),
    ("kernel/keys/root_maxbytes", None),
];

/// The settings as they are now.
pub(super) fn current() -> BTreeMap<String, String> {
    SETTINGS
        .iter()
        .filter_map(|(name, _)| Some((name.to_string(), read(name)?)))
        .collect()
}

/// Raises what must be raised.
pub(super) fn raise() -> Result<()> {
    for (name, least) in SETTINGS {
        let (Some(least), Some(now)) = (least, read(name)) else {
            continue;
        };
        if now.parse::<u64>().is_ok_and(|now| now < least) {
            write(name, &least.to_string())?;
        }
    }
    Ok(())
}

/// Puts settings back.
pub(super) fn restore(settings: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in settings {
        // Only names of the list: the record is a file that anything might have written.
        if SETTINGS.iter().any(|(known, _)| known == name) && read(name).as_ref() != Some(value) {
            write(name, value)?;
        }
    }
    Ok(())
}

fn read(name: &str) -> Option<String> {
    Some(
        fs::read_to_string(Path::new("/proc/sys").join(name))
            .ok()?
            .trim()
            .to_owned(),
    )
}

fn write(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value)
        .with_context(|| format!("cannot set {name} to {value}"))
}
