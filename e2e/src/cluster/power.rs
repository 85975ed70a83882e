//! Cutting the cluster's power, or that of some of its programs, and switching it on again.
//!
//! Owns how a program that was killed is started again as it was: same command line, same namespaces. What it keeps on
//! disk is left alone, as a real power cut would leave it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::daemon::{Daemon, Supervisor, arguments};
use super::process::Process;
use super::record::Record;
use super::{cgroup, lock, network};
use crate::checkout::Checkout;

/// Programs that live among the node's mounts.
const MOUNTED: [&str; 2] = ["kubelet", "containerd"];

/// Kills programs of the cluster, all that are named or none.
pub fn cut(names: &[&str]) -> Result<Vec<Process>> {
    let record = Record::load().context("no local cluster runs")?;
    let find = |name: &&str| {
        let running = record.running(name).cloned();
        running.with_context(|| format!("{name} does not run"))
    };
    let found: Vec<Process> = names.iter().map(find).collect::<Result<_>>()?;
    // One after the other without a pause: as near to a power cut as signals come.
    for process in &found {
        ensure!(
            process.signal(Signal::SIGKILL),
            "{} ended by itself",
            process.name
        );
    }
    Ok(found)
}

/// Kills every process of every pod.
pub fn kill_pods() -> Result<()> {
    for pid in cgroup::container_processes()? {
        // The end of one may have ended others.
        let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

/// Starts again those that do not run, the last that was cut first: what everything else needs is named last.
///
/// To be called again until all is well, as a node's init system would: some end when they come up before the API server.
pub fn restore(checkout: &Checkout, cuts: &[Process]) -> Result<()> {
    let record = Record::load().context("the record of the local cluster is gone")?;
    let mounts = record.running("mounts").map(|process| process.pid);
    let ended: Vec<&Process> = cuts
        .iter()
        .filter(|cut| record.running(&cut.name).is_none())
        .collect();
    let change = lock::for_change()?;
    let supervisor = Supervisor::new(record, checkout.cluster_dir().join("log"), &change)?;
    for cut in ended.into_iter().rev() {
        let is_mounted = MOUNTED.contains(&cut.name.as_str());
        supervisor.start(&Daemon {
            name: &cut.name,
            program: PathBuf::from(&cut.called),
            arguments: arguments(&cut.arguments),
            network: Some(network::namespace_file()),
            mounts: mounts.filter(|_| is_mounted),
        })?;
    }
    Ok(())
}

/// Starts again what has ended by itself, as a node's init system would: Kubernetes' own programs do that, rarely, when
/// they find themselves confused. Says what that was.
pub fn revive(checkout: &Checkout) -> Result<Vec<String>> {
    let record = Record::load().context("no local cluster runs")?;
    let mut seen = BTreeSet::new();
    let newest = record.processes.iter().rev();
    let ended: Vec<Process> = newest
        .filter(|process| seen.insert(&process.name) && !process.is_running())
        .cloned()
        .collect();
    if !ended.is_empty() {
        restore(checkout, &ended)?;
    }
    Ok(ended.into_iter().map(|process| process.name).collect())
}
