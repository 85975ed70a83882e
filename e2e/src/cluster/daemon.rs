//! Starting the cluster's programs, which outlive this one.
//!
//! Owns how a program gets into the cluster's control group and namespaces, away from this terminal, with a log file
//! and an entry in the record. Must not know what the programs do.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cgroup;
use super::process::Process;
use super::record::Record;
use crate::command::tail;

/// Joins the control groups, then becomes the program: a shell, since a process can only move itself before it
/// runs anything else. The process number stays the same throughout. Until then its standard input is the lock on the
/// cluster: whoever starts it may be killed, and who comes next must not begin while it is in no group yet.
const JOIN: &str =
    r#"while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@" < /dev/null"#;

/// A program to start.
pub struct Daemon<'a> {
    /// What it is called in the record and its log file.
    pub name: &'a str,
    /// The program; it is called by this very path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The network namespace it lives in.
    pub network: Option<PathBuf>,
    /// The process whose mount namespace it shares.
    pub mounts: Option<i32>,
}

/// Starts programs and remembers them.
pub struct Supervisor {
    record: std::sync::Mutex<Record>,
    logs: PathBuf,
    change: File,
}

impl Supervisor {
    /// Keeps `record`, and writes logs below `logs`. `change` is the lock on the cluster, [`super::lock::for_change`].
    pub fn new(record: Record, logs: PathBuf, change: &File) -> Result<Self> {
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        record.save()?;
        Ok(Self {
            record: std::sync::Mutex::new(record),
            logs,
            change: change
                .try_clone()
                .context("cannot share the lock on the cluster")?,
        })
    }

    /// Changes the record and writes it.
    pub fn note(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self
            .record
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut record);
        record.save()
    }

    /// Starts a program. It goes on when this one ends.
    pub fn start(&self, daemon: &Daemon<'_>) -> Result<Process> {
        let name = daemon.name;
        let log = File::create(self.log(name)).with_context(|| format!("cannot create the log of {name}"))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", JOIN, "join"])
            .args(cgroup::membership_files()?)
            .arg("--")
            .arg("setsid");
        if daemon.network.is_some() || daemon.mounts.is_some() {
            command.arg("nsenter");
        }
        if let Some(network) = &daemon.network {
            command.arg(format!("--net={}", network.display()));
        }
        if let Some(pid) = daemon.mounts {
            command.arg(format!("--mount=/proc/{pid}/ns/mnt"));
        }
        command.arg(&daemon.program).args(&daemon.arguments);
        command.env_clear().env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command.env("HOME", "/root").current_dir("/");
        command
            .stdin(self.change.try_clone()?)
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let process = Process::started(name, child.id(), &daemon.program, &daemon.arguments)
            .with_context(|| self.last_words(name))?;
        self.note(|record| record.processes.push(process.clone()))?;
        // Reaps the program should it end while this one still runs; a zombie would look alive to others.
        std::thread::spawn(move || child.wait());
        Ok(process)
    }

    /// An error with the last of the log if the program has ended.
    pub fn expect_alive(&self, process: &Process) -> Result<()> {
        // Still becoming the program counts as alive, so that only the number is looked at here.
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            bail!("{}", self.last_words(&process.name));
        }
        Ok(())
    }

    fn last_words(&self, name: &str) -> String {
        let log = self.log(name);
        let text = fs::read(&log).unwrap_or_default();
        format!(
            "{name} has ended; its log {} says:\n{}",
            log.display(),
            tail(&String::from_utf8_lossy(&text))
        )
    }

    fn log(&self, name: &str) -> PathBuf {
        log_file(&self.logs, name)
    }
}

/// The log of the program called `name`.
pub fn log_file(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{name}.log"))
}

/// Arguments of a program, from words and paths alike.
pub fn arguments<I: IntoIterator<Item = S>, S: Into<OsString>>(words: I) -> Vec<OsString> {
    words.into_iter().map(Into::into).collect()
}
