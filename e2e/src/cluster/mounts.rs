//! The files the node sees: a mount namespace of its own, where the usual places of a node are the cluster's own.
//!
//! Owns the holder process that keeps the namespace alive. In it `/run` is fresh, and `/var/lib/kubelet` and its like
//! are folders of the cluster's state. So pods' volumes and root file systems are mounted where nobody else sees them,
//! paths are short whatever the checkout's is, and when the last process ends every mount is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::daemon::{Daemon, Supervisor, arguments};
use super::process::Process;
use super::record::RUN;
use crate::progress::wait_for;

/// The places of a node, each a folder of the cluster's state of the name beside it.
const PLACES: [(&str, &str); 4] = [
    ("/var/lib/kubelet", "kubelet"),
    ("/var/lib/containerd", "containerd"),
    ("/var/lib/cni", "cni-state"),
    ("/var/log", "node-log"),
];

/// The first argument is the machine-wide folder, then pairs of a folder and its place, then the program to become.
const MOUNT: &str = r#"set -e
mount -n --make-rprivate /
mkdir -p "$1/fresh"
mount -n -t tmpfs -o mode=755 tmpfs "$1/fresh"
mkdir "$1/fresh/osm-e2e" "$1/fresh/netns" "$1/fresh/containerd"
mount -n --bind "$1" "$1/fresh/osm-e2e"
mount -n --move "$1/fresh" /run
touch /run/osm-e2e/mounts.trying
shift
while [ "$1" != -- ]; do mount -n --bind "$1" "$2"; shift 2; done
shift
mv /run/osm-e2e/mounts.trying /run/osm-e2e/mounts.ready
exec "$@""#;

/// Starts the holder and waits until all is mounted. `state` is where the node's folders are made.
pub(super) fn hold(supervisor: &Supervisor, state: &Path) -> Result<Process> {
    let mut words = arguments(["--mount", "sh", "-c", MOUNT, "mounts", RUN]);
    for (place, folder) in PLACES {
        let folder = state.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        make_place(supervisor, Path::new(place))?;
        words.extend(arguments([folder, place.into()]));
    }
    words.extend(arguments(["--", "sleep", "infinity"]));
    let ready = Path::new(RUN).join("mounts.ready");
    let _ = fs::remove_file(&ready);
    let holder = supervisor.start(&Daemon {
        name: "mounts",
        program: PathBuf::from("/usr/bin/unshare"),
        arguments: words,
        network: None,
        mounts: None,
    })?;
    wait_for("the node's mounts", Duration::from_secs(10), || {
        supervisor.expect_alive(&holder)?;
        Ok(ready.exists())
    })?;
    // What was recorded is `unshare`, which has become something else by now.
    let holder = Process {
        program: PathBuf::from("/usr/bin/sleep"),
        called: "sleep".to_owned(),
        ..holder
    };
    let recorded = holder.clone();
    supervisor.note(|record| record.processes.retain(|process| process.pid != recorded.pid))?;
    supervisor.note(|record| record.processes.push(recorded))?;
    Ok(holder)
}

/// A mount point must exist for everyone, though only the node sees what is mounted on it.
fn make_place(supervisor: &Supervisor, place: &Path) -> Result<()> {
    if place.is_dir() {
        return Ok(());
    }
    supervisor.note(|record| record.folders.push(place.to_owned()))?;
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))
}
