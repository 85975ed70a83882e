//! Cutting the cluster's power, or that of some of its programs, and switching it on again.
//!
//! Owns how a program that was killed is started again as it was: same command line, same namespaces. What it keeps on
//! disk is left alone, as a real power cut would leave it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::daemon::{Daemon, Supervisor};
use super::record::Record;
use super::{cgroup, lock, network};
use crate::checkout::Checkout;

/// Programs that live among the node's mounts.
const MOUNTED: [&str; 2] = ["kubelet", "containerd"];

/// A program that was killed, and how to start it again.
#[derive(Debug)]
pub struct Cut {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// Kills programs of the cluster, all that are named or none.
pub fn cut(names: &[&str]) -> Result<Vec<Cut>> {
    let record = Record::load().context("no local cluster runs")?;
    let mut found = Vec::new();
    for name in names {
        let process = record
            .running(name)
            .with_context(|| format!("{name} does not run"))?;
        let line = fs::read(format!("/proc/{}/cmdline", process.pid))
            .with_context(|| format!("cannot read the command line of {name}"))?;
        let arguments = line
            .split(|byte| *byte == 0)
            .skip(1)
            .filter(|argument| !argument.is_empty())
            .map(|argument| OsString::from_vec(argument.to_vec()))
            .collect();
        let cut = Cut {
            name: (*name).to_owned(),
            program: PathBuf::from(&process.called),
            arguments,
        };
        found.push((process, cut));
    }
    // One after the other without a pause: as near to a power cut as signals come.
    for (process, _) in &found {
        ensure!(
            process.signal(Signal::SIGKILL),
            "{} ended by itself",
            process.name
        );
    }
    Ok(found.into_iter().map(|(_, cut)| cut).collect())
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
pub fn restore(checkout: &Checkout, cuts: &[Cut]) -> Result<()> {
    let record = Record::load().context("the record of the local cluster is gone")?;
    let mounts = record.running("mounts").map(|process| process.pid);
    let ended: Vec<&Cut> = cuts
        .iter()
        .filter(|cut| record.running(&cut.name).is_none())
        .collect();
    let change = lock::for_change()?;
    let supervisor = Supervisor::new(record, checkout.cluster_dir().join("log"), &change)?;
    for cut in ended.into_iter().rev() {
        let is_mounted = MOUNTED.contains(&cut.name.as_str());
        supervisor.start(&Daemon {
            name: &cut.name,
            program: cut.program.clone(),
            arguments: cut.arguments.clone(),
            network: Some(network::namespace_file()),
            mounts: mounts.filter(|_| is_mounted),
        })?;
    }
    Ok(())
}
