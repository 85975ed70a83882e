//! Whether a process is still the one that was started.
//!
//! A number alone proves nothing: it may have gone to another program since. Nothing here searches by name.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that was started, and what tells it from any other that may get its number later.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Process {
    /// What it is to the cluster: `kube-apiserver`.
    pub name: String,
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
    /// The program it runs.
    pub program: PathBuf,
    /// Its first argument, the name it was called by.
    pub called: String,
    /// The other arguments.
    pub arguments: Vec<String>,
}

impl Process {
    /// The process of that number, just started, that is to run `program` with these arguments.
    pub fn started(name: &str, pid: u32, program: &Path, arguments: &[OsString]) -> Result<Self> {
        let called = program.to_string_lossy().into_owned();
        let arguments = arguments.iter().map(|word| word.to_string_lossy().into_owned());
        let pid = i32::try_from(pid).context("a process number out of range")?;
        let started = start_time(pid).with_context(|| format!("{name} ended as soon as it was started"))?;
        let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
        Ok(Self {
            name: name.to_owned(),
            pid,
            started,
            program,
            called,
            arguments: arguments.collect(),
        })
    }

    /// Whether this very process is alive: number, start time, program and the name it was called by all agree.
    pub fn is_running(&self) -> bool {
        let folder = PathBuf::from(format!("/proc/{}", self.pid));
        let called = fs::read(folder.join("cmdline")).unwrap_or_default();
        let called = called.split(|byte| *byte == 0).next().unwrap_or_default();
        start_time(self.pid) == Some(self.started)
            && fs::read_link(folder.join("exe")).is_ok_and(|exe| is_program(&exe, &self.program))
            && called == self.called.as_bytes()
    }

    /// Sends a signal, if it is still this very process; says whether it was.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_running() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }
}

/// A program replaced on disk while it runs (an upgrade, a rebuilt cache) shows with a suffix.
fn is_program(exe: &Path, program: &Path) -> bool {
    let exe = exe.to_string_lossy();
    Path::new(exe.strip_suffix(" (deleted)").unwrap_or(&exe)) == program
}

/// Start time of a living process in clock ticks since the boot; none for one that is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, and may hold any character, also these.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sleep() -> (std::process::Child, Process) {
        let program = Path::new("/bin/sleep");
        let child = Command::new(program).arg("60").spawn().unwrap();
        let process = Process::started("test", child.id(), program, &["60".into()]).unwrap();
        // The name and program are those of this test until the new program is in place.
        for _ in 0..500 {
            if process.is_running() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        (child, process)
    }

    #[test]
    fn only_the_very_process_is_recognised() {
        let (mut child, process) = sleep();
        assert!(process.is_running());
        assert!(
            !Process {
                started: process.started + 1,
                ..process.clone()
            }
            .is_running()
        );
        assert!(
            !Process {
                program: "/bin/true".into(),
                ..process.clone()
            }
            .is_running()
        );
        assert!(
            !Process {
                called: "kubelet".into(),
                ..process.clone()
            }
            .is_running()
        );
        assert!(process.signal(Signal::SIGKILL));
        // Not reaped yet: a zombie does not run.
        while process.is_running() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.signal(Signal::SIGKILL));
    }

    #[test]
    fn a_name_with_parentheses_is_read() {
        let stat = "7 (a) Z (b) S 1 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4242 1 1";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time(&stat.replace(") S", ") Z")), None);
        assert_eq!(parse_start_time("nonsense"), None);
    }
}
