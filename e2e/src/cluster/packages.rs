//! Debian packages the cluster and its images are made of.
//!
//! Installs what is missing. Must not upgrade or configure anything that is there.

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::progress::Progress;

/// What the node needs.
pub const NODE: [&str; 9] = [
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "nftables",
    "iproute2",
    "conntrack",
    "procps",
    "util-linux",
];

/// Installs those of `packages` that are not.
pub fn ensure(packages: &[&str], progress: &Progress) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    progress.long_step(&format!("install {}", missing.join(", ")), || {
        let advice = || format!("install {} yourself and try again", missing.join(" "));
        let mut update = command("apt-get", ["update", "-qq"]);
        run(&mut update).with_context(advice)?;
        let mut install = command(
            "apt-get",
            ["install", "-y", "--no-install-recommends", "--no-upgrade"],
        );
        install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut install).with_context(advice)
    })
}

fn is_installed(package: &str) -> bool {
    let state = command("dpkg-query", ["-W", "-f=${db:Status-Status}", package]).output();
    state.is_ok_and(|output| output.stdout == b"installed")
}
