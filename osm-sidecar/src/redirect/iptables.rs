//! The programs that put rules into the kernel.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::rules::Family;

/// One of the implementations of iptables.
#[derive(Clone, Copy)]
pub(super) struct Tool {
    restore: &'static str,
    save: &'static str,
}

impl Tool {
    /// In the order they are tried: nf_tables, which all current kernels have; the legacy one; whatever the image
    /// calls iptables.
    pub(super) fn of(family: Family) -> [Self; 3] {
        let tool = |restore, save| Self { restore, save };
        match family {
            Family::V4 => [
                tool("iptables-nft-restore", "iptables-nft-save"),
                tool("iptables-legacy-restore", "iptables-legacy-save"),
                tool("iptables-restore", "iptables-save"),
            ],
            Family::V6 => [
                tool("ip6tables-nft-restore", "ip6tables-nft-save"),
                tool("ip6tables-legacy-restore", "ip6tables-legacy-save"),
                tool("ip6tables-restore", "ip6tables-save"),
            ],
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.restore
    }

    /// The rules there are.
    pub(super) fn save(self) -> Result<String> {
        self.run(self.save, &["-t", "nat"], "")
    }

    /// Applies a transaction: all of it or nothing.
    pub(super) fn restore(self, transaction: &str) -> Result<()> {
        self.run(self.restore, &["--noflush", "--wait=10"], transaction)
            .map(drop)
    }

    fn run(self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // The legacy programs lock a file in /run, which is read-only here. Nobody else changes this namespace.
        if Path::new("/dev/shm").is_dir() {
            command.env("XTABLES_LOCKFILE", "/dev/shm/osm-sidecar.lock");
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why itself.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child
            .wait_with_output()
            .with_context(|| format!("{program} cannot be waited for"))?;
        if !output.status.success() {
            bail!(
                "{program} failed ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
