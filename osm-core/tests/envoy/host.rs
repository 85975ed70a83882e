//! Two hosts on one wire: network namespaces with the redirection that a pod's init container makes.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// A network namespace, by name.
#[derive(Clone)]
pub(crate) struct Host {
    name: String,
}

impl Host {
    /// A command that runs on the host.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Does this on the host. Sockets made there stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker.join().unwrap()
        })
    }
}

/// The client's pod and the server's.
pub(crate) struct Wire {
    pub(crate) client: Host,
    pub(crate) server: Host,
}

/// The address of the server's pod.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// An address of the wire that nobody has: connections to it get no answer at all.
pub(crate) const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 9));
/// The cluster IP of every service; connections to the range it is of are redirected to the client's sidecar.
pub(crate) const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));

impl Wire {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{:x}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let [client, server] = [format!("osmc{id}"), format!("osms{id}")];
        let wire = Self {
            client: Host { name: client.clone() },
            server: Host { name: server.clone() },
        };
        ip(&format!("netns add {client}"));
        ip(&format!("netns add {server}"));
        ip(&format!(
            "link add eth0 netns {client} type veth peer name eth0 netns {server}"
        ));
        for (host, address) in [(&client, "10.77.0.1"), (&server, "10.77.0.2")] {
            ip(&format!("-n {host} addr add {address}/16 dev eth0"));
            ip(&format!("-n {host} link set lo up"));
            ip(&format!("-n {host} link set eth0 up"));
        }
        ip(&format!("-n {client} route add default via 10.77.0.2"));
        // A neighbour that is there for the kernel but answers nothing: packets to it are lost, as to a dead node.
        ip(&format!(
            "-n {client} neigh add {NOBODY} lladdr 02:00:00:00:00:09 dev eth0"
        ));
        let redirect = |host: &str, rule: &str| {
            ip(&format!("netns exec {host} iptables -t nat -A {rule}"));
        };
        redirect(
            &client,
            "OUTPUT -p tcp -d 10.96.0.0/16 -j REDIRECT --to-ports 15001",
        );
        redirect(&server, "PREROUTING -p tcp -j REDIRECT --to-ports 15003");
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for host in [&self.client, &self.server] {
            drop(Command::new("ip").args(["netns", "del", &host.name]).status());
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "`ip {arguments}`: {}this test makes network namespaces: it needs root, iproute2 and iptables",
        String::from_utf8_lossy(&output.stderr)
    );
}
