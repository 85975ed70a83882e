//! The network the cluster lives in: a namespace of its own, and one cable from the host's.
//!
//! Owns the namespace [`NAMESPACE`], the bridge in it that holds the node's address, and the veth pair whose host end
//! gives the host's shell a way to the API server, Services and pods. Must not touch any other interface, and no rule
//! of the host's firewall. Invariant: removing the namespace removes everything here.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{command, output, run};

/// The namespace's name; its programs are reached with `ip netns exec osm-e2e ...`.
pub const NAMESPACE: &str = "osm-e2e";
/// Where namespaces that have a name are.
const NAMES: &str = "/run/netns";
/// The host's end of the cable.
const HOST_END: &str = "osm-e2e-host";
/// The node's end of the cable, a port of the bridge.
const NODE_END: &str = "host";
const BRIDGE: &str = "node";

/// The host's address on the cable.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
/// The node's address: the API server, the kubelet and node ports answer here.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
const LINK_PREFIX: u8 = 24;

/// Addresses of pods.
pub const PODS: &str = "10.244.0.0/16";
/// Addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The API server's Service: the first address of [`SERVICES`].
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The DNS Service.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The namespace's file.
pub fn namespace_file() -> PathBuf {
    Path::new(NAMES).join(NAMESPACE)
}

/// Where the kernel shows the host's end of the cable.
pub fn host_end() -> PathBuf {
    Path::new("/sys/class/net").join(HOST_END)
}

/// Makes the namespace and the cable.
pub fn create() -> Result<()> {
    run(&mut command("ip", ["netns", "add", NAMESPACE]))
        .context("cannot make a network namespace: root and CAP_SYS_ADMIN are needed")?;
    let node = format!("{NODE}/{LINK_PREFIX}");
    let host = format!("{HOST}/{LINK_PREFIX}");
    inside("link set lo up")?;
    inside(&format!("link add {BRIDGE} type bridge"))?;
    inside(&format!("addr add {node} dev {BRIDGE}"))?;
    inside(&format!("link set {BRIDGE} up"))?;
    ip(&format!(
        "link add {HOST_END} type veth peer name {NODE_END} netns {NAMESPACE}"
    ))?;
    inside(&format!("link set {NODE_END} master {BRIDGE}"))?;
    inside(&format!("link set {NODE_END} up"))?;
    // Not by way of the host: what leaves the cluster must fail fast, not wander off.
    inside(&format!("route add default dev {BRIDGE}"))?;
    ip(&format!("addr add {host} dev {HOST_END}"))?;
    ip(&format!("link set {HOST_END} up"))?;
    for range in [PODS, SERVICES] {
        ip(&format!("route add {range} via {NODE} dev {HOST_END}"))
            .with_context(|| format!("the host already uses {range} for something else"))?;
    }
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        run(&mut command(
            "ip",
            ["netns", "exec", NAMESPACE, "sysctl", "-qw", setting],
        ))?;
    }
    Ok(())
}

/// Removes the namespace, and with it the cable. Nothing to do if there is none.
pub fn remove() -> Result<()> {
    // First the cable: the namespace itself goes only when the last process in it does.
    if output(&mut command("ip", ["-o", "link", "show"]))?.contains(&format!(" {HOST_END}@")) {
        ip(&format!("link del {HOST_END}"))?;
    }
    if namespace_file().exists() {
        run(&mut command("ip", ["netns", "del", NAMESPACE]))?;
    }
    // The first namespace with a name turned the folder of names into a mount point.
    let names = Path::new(NAMES);
    if std::fs::read_dir(names).is_ok_and(|mut entries| entries.next().is_none()) {
        // Neither is there if nobody ever named a namespace.
        let _ = nix::mount::umount(names);
        let _ = std::fs::remove_dir(names);
    }
    Ok(())
}

/// The address a program of the cluster binds to be reached by nobody but its neighbours in the namespace.
pub fn loopback() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

fn ip(line: &str) -> Result<()> {
    run(&mut command("ip", line.split(' ')))
}

fn inside(line: &str) -> Result<()> {
    run(&mut command(
        "ip",
        ["-n", NAMESPACE].into_iter().chain(line.split(' ')),
    ))
}
