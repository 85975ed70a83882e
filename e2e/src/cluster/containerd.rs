//! containerd: its configuration and its start.
//!
//! Owns the runtime's settings, which are those a kernel without CAP_SYS_RESOURCE and with hybrid cgroups needs, and
//! the CNI network of the pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::control_plane::Setup;
use super::daemon::{Daemon, arguments};
use super::network;
use super::process::Process;
use super::record::RUN;
use crate::progress::wait_for;

/// The image every pod's namespaces are held by; it is made here, never pulled.
pub const PAUSE_IMAGE: &str = "localhost/osm/pause:dev";

/// The socket, the same seen from the node and from the host.
pub fn socket() -> PathBuf {
    Path::new(RUN).join("containerd.sock")
}

/// Starts containerd among the node's mounts and waits for its socket.
pub(super) fn start(setup: &Setup<'_>, mounts: i32) -> Result<Process> {
    let cni = setup.state.join("cni");
    fs::create_dir_all(&cni)?;
    fs::write(
        cni.join("10-pods.conflist"),
        serde_json::to_vec_pretty(&pod_network())?,
    )
    .context("cannot write the pods' network configuration")?;
    let config = setup.state.join("containerd.toml");
    fs::write(&config, configuration(&socket(), &cni)).context("cannot write containerd's configuration")?;
    let process = setup.supervisor.start(&Daemon {
        name: "containerd",
        program: PathBuf::from("/usr/bin/containerd"),
        arguments: arguments([Path::new("--config"), &config]),
        network: Some(network::namespace_file()),
        mounts: Some(mounts),
    })?;
    wait_for("containerd", Duration::from_secs(30), || {
        setup.supervisor.expect_alive(&process)?;
        // The socket file appears before anything is served.
        Ok(std::os::unix::net::UnixStream::connect(socket()).is_ok())
    })?;
    Ok(process)
}

/// Every pod hangs on a cable of its own and all traffic is routed: replies of a neighbour behind a Service cannot take
/// a short cut past address translation, as they could on a bridge.
fn pod_network() -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/addresses",
                    "ranges": [[{"subnet": network::PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

fn configuration(socket: &Path, cni: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE no process may lower its score, and every sandbox would fail to start.
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"#,
        socket = socket.display(),
        cni = cni.display(),
    )
}
