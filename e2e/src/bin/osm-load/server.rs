//! A program that is measured: its start and end, and what it costs by the kernel's accounting.
//!
//! Owns child processes; none outlives its owner, however that ends. CPU time and memory are read from `/proc`, which
//! every process is charged in alike; nothing a program says about itself enters, but for its own counters ([`Server::metric`]).

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use osm_e2e::command::tail;

/// A running program. Killed when dropped, as a power failure would.
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a process has used so far, or holds now.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// Seconds of CPU time, its children's not included.
    pub(crate) cpu: f64,
    /// Resident memory, MB (10^6 bytes).
    pub(crate) resident: f64,
    /// The largest resident memory since [`forget_peak`](Server::forget_peak), MB.
    pub(crate) peak: f64,
}

impl Server {
    /// Starts a program; what it prints goes to `<folder>/<name>.log`.
    pub(crate) fn start(name: &str, folder: &Path, command: &Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = tied(command)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it has used.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn usage(&self) -> Result<Usage> {
        usage(self.pid()).with_context(|| self.last_words())
    }

    /// Lets the peak begin anew.
    pub(crate) fn forget_peak(&self) {
        // Not all kernels can; the peak is then that of the whole life.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.pid()), "5");
    }

    /// Waits until it answers a GET with 200, and says for how long.
    pub(crate) async fn until_ready(
        &mut self,
        address: SocketAddr,
        path: &str,
        at_most: Duration,
    ) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            if let Ok(page) = get(address, path).await
                && page.split_whitespace().nth(1) == Some("200")
            {
                return Ok(begun.elapsed());
            }
            if self.child.try_wait()?.is_some() {
                bail!("{}", self.last_words());
            }
            if begun.elapsed() > at_most {
                bail!(
                    "{} is not ready after {at_most:?}; {}",
                    self.name,
                    self.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        format!(
            "{}'s log {} ends:\n{}",
            self.name,
            self.log.display(),
            tail(&text)
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The same program, killed by the kernel when the thread that starts it ends: a SIGKILL leaves no time to drop anything.
fn tied(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    tied
}

/// The sum of a metric over its labels, from a component's admin endpoint.
pub(crate) async fn metric(host: IpAddr, name: &str) -> Result<f64> {
    let page = get((host, osm_core::api::ports::ADMIN).into(), "/metrics").await?;
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = rest.strip_prefix("_total").unwrap_or(rest);
        let is_it = rest.starts_with([' ', '{']);
        is_it
            .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .flatten()
    });
    Ok(values.sum())
}

/// What this process has used.
pub(crate) fn own_usage() -> Usage {
    usage(std::process::id()).unwrap_or_default()
}

fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let stat = read("stat")?;
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the kernel has no clock ticks")?;
    let (user, system) = times(&stat).context("/proc/<pid>/stat cannot be read")?;
    let status = read("status")?;
    let megabytes = |key: &str| kilobytes(&status, key).unwrap_or(0.0) * 1.024e-3;
    Ok(Usage {
        cpu: (user + system) as f64 / ticks as f64,
        resident: megabytes("VmRSS:"),
        peak: megabytes("VmHWM:"),
    })
}

/// User and system time in ticks.
fn times(stat: &str) -> Option<(u64, u64)> {
    // The program's name is in parentheses and may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn kilobytes(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            address.ip()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        anyhow::Ok(page)
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_accounts_are_read() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194560 1 1 1 1 250 50 1 1 20 0 1 0 4242 1 1";
        assert_eq!(times(stat), Some((250, 50)));
        assert_eq!(
            kilobytes("VmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n", "VmRSS:"),
            Some(1024.0)
        );
        let own = own_usage();
        assert!(own.resident > 1.0 && own.peak >= own.resident, "{own:?}");
    }
}
