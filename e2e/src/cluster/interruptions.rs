//! Whether `cluster up` and `cluster down` keep their word when they are killed: whatever is left, the next `up` makes a
//! cluster that works, and the next `down` leaves nothing.
//!
//! Owns the moments at which they are killed. Invariant: no cluster is there afterwards.

use std::env;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::kubectl::Kubectl;
use super::record::{self, RUN, Record};
use super::{cgroup, is_current, leftovers, network, settings};
use crate::checkout::Checkout;
use crate::command::{command, run};
use crate::progress::Progress;

/// A moment of a command's work, seen from outside.
struct Moment {
    /// Completes "killed when ...".
    what: &'static str,
    is_reached: fn() -> bool,
}

/// Those of `cluster up`, in their order. Before the first it has made nothing.
const OF_UP: [Moment; 5] = [
    Moment {
        what: "the cluster is written down",
        is_reached: || Record::load().is_some(),
    },
    Moment {
        what: "the network is being made",
        is_reached: || network::namespace_file().exists(),
    },
    Moment {
        what: "etcd is started",
        is_reached: || is_started("etcd"),
    },
    Moment {
        what: "containerd is started",
        is_reached: || is_started("containerd"),
    },
    Moment {
        what: "every program is started",
        is_reached: || is_started("kube-proxy"),
    },
];

/// Those of `cluster down`.
const OF_DOWN: [Moment; 2] = [
    Moment {
        what: "the programs have ended",
        is_reached: || cgroup::is_empty().unwrap_or_default(),
    },
    Moment {
        what: "the network is gone",
        is_reached: || !network::namespace_file().exists(),
    },
];

fn is_started(name: &str) -> bool {
    Record::load().is_some_and(|record| record.processes.iter().any(|process| process.name == name))
}

/// Kills `cluster up` at every moment, once followed by `down` and once by `up`; then `down` itself. Removes a cluster that
/// is up.
pub fn interruptions(checkout: &Checkout, progress: &Progress) -> Result<()> {
    if is_current() {
        bail!("CLUSTER=current: only a cluster that is made here can be interrupted");
    }
    let this = Interrupted {
        program: env::current_exe().context("cannot find this program")?,
        checkout,
    };
    progress.step("no cluster", || this.run("down"))?;
    let bare = Record {
        settings: settings::current(),
        boot: record::boot(),
        ..Record::default()
    };
    for moment in &OF_UP {
        progress.step(&format!("up killed when {}; down", moment.what), || {
            this.kill_up(moment)?;
            this.down(&bare)
        })?;
        progress.step(&format!("up killed when {}; up; down", moment.what), || {
            this.kill_up(moment)?;
            this.up()?;
            this.down(&bare)
        })?;
    }
    for moment in &OF_DOWN {
        progress.step(&format!("up; down killed when {}; down", moment.what), || {
            this.up()?;
            // It may be faster than it is watched; then there is nothing to be seen.
            this.kill("down", moment)?;
            this.down(&bare)
        })?;
    }
    progress.say("no interruption kept a cluster from being made, and none left anything behind");
    Ok(())
}

/// This program, as a command that can be killed.
struct Interrupted<'a> {
    program: PathBuf,
    checkout: &'a Checkout,
}

impl Interrupted<'_> {
    fn command(&self, verb: &str) -> Command {
        let mut command = command(&self.program, ["cluster", verb]);
        command.current_dir(self.checkout.root());
        command
    }

    /// Runs `cluster up` or `cluster down` to its end.
    fn run(&self, verb: &str) -> Result<()> {
        run(&mut self.command(verb))
    }

    /// Makes a cluster, which must answer.
    fn up(&self) -> Result<()> {
        self.run("up")?;
        let kubectl = Kubectl::new(self.checkout.bin().join("kubectl"), self.checkout.kubeconfig());
        kubectl
            .run(["get", "--raw", "/readyz", "--request-timeout=5s"])
            .context("the cluster that was made does not answer")?;
        Ok(())
    }

    /// Removes the cluster, of which nothing may be left.
    fn down(&self, bare: &Record) -> Result<()> {
        self.run("down")?;
        leftovers::none(&self.checkout.cluster_dir(), bare)?;
        ensure!(!Path::new(RUN).exists(), "{RUN} is there");
        Ok(())
    }

    fn kill_up(&self, moment: &Moment) -> Result<()> {
        let killed = self.kill("up", moment)?;
        ensure!(
            killed,
            "`cluster up` was done as soon as {}: it was not interrupted",
            moment.what
        );
        Ok(())
    }

    /// Starts a command and kills it at that moment; says whether that was in the middle of its work.
    fn kill(&self, verb: &str, moment: &Moment) -> Result<bool> {
        let mut child = self
            .command(verb)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let status = loop {
            if (moment.is_reached)() {
                child.kill().context("cannot kill it")?;
                break child.wait().context("cannot wait for it")?;
            }
            if let Some(status) = child.try_wait().context("cannot wait for it")? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.signal() == Some(Signal::SIGKILL as i32) {
            return Ok(true);
        }
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        ensure!(
            status.success(),
            "`cluster {verb}` failed before {} ({status}):\n{said}",
            moment.what
        );
        Ok(false)
    }
}
