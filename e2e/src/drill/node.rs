//! The control plane's processes as their node sees them: found by control group, signalled, asked on their loopback.
//!
//! None of it needs the API server, so that faults can be injected and watched while that is gone. Only the local
//! cluster's own processes are ever touched: they are found in its control group and nowhere else.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{cgroup, network, record::Record};
use crate::command::{command, run};

/// Most bytes of one answer.
const MOST: u64 = 64 << 20;

/// A process in a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodProcess {
    /// Its number on the node.
    pub pid: i32,
    /// The file name of its program: `osm-controller`.
    pub program: String,
    /// The name of its pod.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
}

/// The living processes of a program, in all pods.
pub fn processes(program: &str) -> Result<Vec<PodProcess>> {
    let mut found: Vec<PodProcess> = cgroup::container_processes()?
        .into_iter()
        .filter_map(of)
        .filter(|process| process.program == program)
        .collect();
    found.sort();
    Ok(found)
}

/// All living processes of the pod with that uid.
pub fn processes_of_pod(uid: &str) -> Result<Vec<PodProcess>> {
    let all = cgroup::container_processes()?.into_iter().filter_map(of);
    Ok(all.filter(|process| process.uid == uid).collect())
}

fn of(pid: i32) -> Option<PodProcess> {
    let folder = Path::new("/proc").join(pid.to_string());
    let program = fs::read(folder.join("cmdline")).ok()?;
    let program = program.split(|byte| *byte == 0).next()?;
    let program = String::from_utf8_lossy(program);
    // A zombie has no command line.
    let program = Path::new(&*program).file_name()?.to_string_lossy().into_owned();
    let environment = fs::read(folder.join("environ")).ok()?;
    let pod = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"HOSTNAME="))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .unwrap_or_default();
    let groups = fs::read_to_string(folder.join("cgroup")).ok()?;
    Some(PodProcess {
        pid,
        program,
        pod,
        uid: pod_uid(&groups)?,
    })
}

/// The uid of the pod in the lines of `/proc/<pid>/cgroup`: `.../pod<uid>/<container>`.
fn pod_uid(groups: &str) -> Option<String> {
    groups
        .lines()
        .flat_map(|line| line.split('/'))
        .find_map(|part| part.strip_prefix("pod").filter(|uid| uid.len() == 36))
        .map(str::to_owned)
}

impl PodProcess {
    /// Whether it is still this very process.
    pub fn is_alive(&self) -> bool {
        of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(self.is_alive(), "{} of {} has ended", self.program, self.pod);
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("cannot signal {}", self.pod))
    }

    /// A file as the process sees it.
    pub fn file(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// What it answers to a GET on a port of its loopback: status and body. Takes a thread of its own, since a thread
    /// that has joined a network cannot go back.
    pub async fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let (pid, path) = (self.pid, path.to_owned());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let answer = join_network(pid).and_then(|()| get(port, &path, Duration::from_secs(5)));
            // Nobody waits any more: fine.
            let _ = sender.send(answer);
        });
        receiver.await.map_err(|_| anyhow!("the asking thread is gone"))?
    }
}

/// Moves the calling thread into the network of a process.
pub fn join_network(pid: i32) -> Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).context("the process has ended")?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot join the pod's network: are you root?")
}

/// Asks a port of this thread's loopback.
pub fn get(port: u16, path: &str, patience: Duration) -> Result<(u16, String)> {
    get_from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path, patience)
}

/// Asks an address.
pub fn get_from(address: SocketAddr, path: &str, patience: Duration) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status")?;
    Ok((status, body.to_owned()))
}

/// A pod whose packets no other pod gets and that gets none of theirs; its node, so its probes, still reach it. Ends when dropped.
pub struct Partition {
    address: String,
}

impl Partition {
    /// Cuts the pod with that address off.
    pub fn cut(address: &str) -> Result<Self> {
        let partition = Self {
            address: address.to_owned(),
        };
        partition.rules("-I")?;
        Ok(partition)
    }

    fn rules(&self, verb: &str) -> Result<()> {
        for direction in ["-s", "-d"] {
            let rule = [
                "iptables",
                "-w",
                verb,
                "FORWARD",
                direction,
                &self.address,
                "-j",
                "DROP",
            ];
            run(&mut command(
                "ip",
                ["netns", "exec", network::NAMESPACE].into_iter().chain(rule),
            ))?;
        }
        Ok(())
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        if let Err(error) = self.rules("-D") {
            eprintln!("{} stays cut off: {error:#}", self.address);
        }
    }
}

/// A process that stands still until this is dropped.
pub struct Frozen {
    pid: Pid,
    is_same: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Frozen {
    /// Stops a process of a pod.
    pub fn pod_process(process: &PodProcess) -> Result<Self> {
        process.signal(Signal::SIGSTOP)?;
        let same = process.clone();
        Ok(Self {
            pid: Pid::from_raw(process.pid),
            is_same: Box::new(move || same.is_alive()),
        })
    }

    /// Stops one of the cluster's own programs.
    pub fn cluster_program(name: &str) -> Result<Self> {
        let record = Record::load().context("no local cluster runs")?;
        let process = record.running(name).cloned();
        let process = process.with_context(|| format!("the local cluster's {name} does not run"))?;
        ensure!(process.signal(Signal::SIGSTOP), "{name} has ended");
        Ok(Self {
            pid: Pid::from_raw(process.pid),
            is_same: Box::new(move || process.is_running()),
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Somebody may have ended it, and its number may be another's.
        if (self.is_same)() {
            // It may have ended in this moment.
            let _ = kill(self.pid, Signal::SIGCONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_read_from_the_control_group() {
        let uid = "6f2cbd2e-91a5-4b53-8f1c-2a8f8d3f0a11";
        let groups = format!("9:pids:/osm-e2e/kubepods/burstable/pod{uid}/abc\n1:name=systemd:/podx/pods\n");
        assert_eq!(pod_uid(&groups), Some(uid.to_owned()));
        assert_eq!(pod_uid("9:pids:/osm-e2e/programs\n"), None);
    }

    #[test]
    fn answers_are_taken_apart() {
        assert_eq!(
            parse("HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nno\r\n\r\nroot").unwrap(),
            (503, "no\r\n\r\nroot".to_owned())
        );
        assert!(parse("HTTP/1.1 200 OK\r\n").is_err());
    }
}
