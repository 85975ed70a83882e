//! The control groups every process of the cluster lives in, from the first program to the last container.
//!
//! Owns `/osm-e2e` in each cgroup hierarchy. Membership is inherited and nothing leaves, so that the group is the exact
//! list of what must end when the cluster goes, also of processes nobody wrote down.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::progress::wait_for;

const MOUNT: &str = "/sys/fs/cgroup";

/// The group's name, directly below the root of each hierarchy.
pub const GROUP: &str = "osm-e2e";

/// The part of the group that holds the cluster's own programs; the containers are in parts the kubelet makes.
const PROGRAMS: &str = "programs";

/// Makes the group in every hierarchy.
pub fn create() -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(GROUP);
        let programs = group.join(PROGRAMS);
        fs::create_dir_all(&programs).with_context(|| format!("cannot create {}", programs.display()))?;
        if hierarchy.join("cgroup.controllers").exists() && hierarchy == Path::new(MOUNT) {
            // Version 2 gives a group only the controllers its parent passes on.
            for parent in [&hierarchy, &group] {
                let file = parent.join("cgroup.subtree_control");
                fs::write(&file, "+cpu +cpuset +memory +pids")
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        // What is measured on the cluster must not depend on what the machine builds beside it. Version 1 counts shares,
        // of 1024 for everyone else; version 2 weights, of 100.
        for (setting, share) in [("cpu.shares", "16384"), ("cpu.weight", "1600")] {
            let file = group.join(setting);
            if file.exists() {
                fs::write(&file, share).with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        // A cpuset without processors takes no process: version 1 does not inherit them.
        for setting in ["cpuset.cpus", "cpuset.mems"] {
            for group in [&group, &programs] {
                let from = hierarchy.join(setting);
                if let Ok(all) = fs::read(&from) {
                    fs::write(group.join(setting), all)
                        .with_context(|| format!("cannot pass {} on", from.display()))?;
                }
            }
        }
    }
    Ok(())
}

/// The files a process writes its number into to join the group.
pub fn membership_files() -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .iter()
        .map(|hierarchy| hierarchy.join(GROUP).join(PROGRAMS).join("cgroup.procs"))
        .collect())
}

/// Ends every process of the group and removes the group. Nothing to do if there is none.
pub fn remove() -> Result<()> {
    let groups: Vec<PathBuf> = hierarchies()?
        .iter()
        .map(|hierarchy| hierarchy.join(GROUP))
        .collect();
    // A group whose last process is just being buried is busy for a moment, on a busy machine for a long one.
    wait_for("the cluster's processes to end", Duration::from_secs(60), || {
        let mut gone = true;
        for group in &groups {
            for process in processes(group) {
                // Gone in between is as good.
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
            gone &= remove_tree(group)?;
        }
        Ok(gone)
    })
    .with_context(|| format!("{} is busy: {}", GROUP, described(&groups)))
}

/// What is still in the groups, for whoever has to find out why.
fn described(groups: &[PathBuf]) -> String {
    let left: Vec<String> = groups
        .iter()
        .flat_map(|group| processes(group))
        .map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Number, name and state.
            stat.split(' ').take(3).collect::<Vec<_>>().join(" ")
        })
        .collect();
    if left.is_empty() {
        "no process is listed in it".to_owned()
    } else {
        left.join(", ")
    }
}

/// The groups that are there, one in each hierarchy at most.
pub fn remains() -> Result<Vec<PathBuf>> {
    let mut groups: Vec<PathBuf> = hierarchies()?
        .iter()
        .map(|hierarchy| hierarchy.join(GROUP))
        .collect();
    groups.retain(|group| group.exists());
    Ok(groups)
}

/// The processes of all pods.
pub fn container_processes() -> Result<Vec<i32>> {
    let pods = hierarchies()?
        .into_iter()
        .map(|hierarchy| hierarchy.join(GROUP).join("kubepods"))
        .find(|pods| pods.is_dir());
    Ok(pods.map(|pods| processes(&pods)).unwrap_or_default())
}

/// Whether any process of the cluster is alive.
pub fn is_empty() -> Result<bool> {
    Ok(hierarchies()?
        .iter()
        .all(|hierarchy| processes(&hierarchy.join(GROUP)).is_empty()))
}

fn processes(group: &Path) -> Vec<i32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = own
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 1)
        .collect();
    for child in children(group) {
        found.extend(processes(&child));
    }
    found
}

fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn remove_tree(group: &Path) -> Result<bool> {
    for child in children(group) {
        if !remove_tree(&child)? {
            return Ok(false);
        }
    }
    match fs::remove_dir(group) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", group.display())),
    }
}

/// Where the hierarchies are mounted: one in version 2, one for each controller in version 1 and in the hybrid.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let found = parse_hierarchies(&mounts);
    if found.is_empty() {
        bail!("no cgroups are mounted below {MOUNT}: a kubelet cannot run here");
    }
    Ok(found)
}

fn parse_hierarchies(mounts: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(place), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        if matches!(kind, "cgroup" | "cgroup2") && place.starts_with(MOUNT) {
            let place = PathBuf::from(place);
            if !found.contains(&place) {
                found.push(place);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /elsewhere cgroup rw 0 0\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(parse_hierarchies(hybrid), expected);
        assert_eq!(
            parse_hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
            [PathBuf::from(MOUNT)]
        );
    }
}
