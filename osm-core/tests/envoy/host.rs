//! Hosts on wires: network namespaces with the redirection that a pod's init container makes.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
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
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self { name }
    }

    fn redirect(&self, rule: &str) {
        ip(&format!("netns exec {} iptables -t nat -A {rule}", self.name));
    }

    fn redirect_ipv6(&self, rule: &str) {
        ip(&format!("netns exec {} ip6tables -t nat -A {rule}", self.name));
    }

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

/// The client's pod, and servers' pods with a wire to each.
pub(crate) struct Wire {
    pub(crate) client: Host,
    pub(crate) servers: Vec<Host>,
}

/// The address of a server's pod.
pub(crate) fn server_address(index: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, index, 2).into()
}

/// The address of the first server's pod.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// An address of the first wire that nobody has: connections to it get no answer at all.
pub(crate) const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 9));
/// The cluster IP of every service; connections to the range it is of are redirected to the client's sidecar.
pub(crate) const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));

/// The IPv6 address of the first server's pod, once it has one.
pub(crate) const SERVER_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
/// The IPv6 cluster IP of every service.
pub(crate) const SERVICE_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1));

impl Wire {
    /// Gives the client and the first server IPv6 addresses, too.
    pub(crate) fn add_ipv6(&self) {
        let (near, far) = (&self.client, &self.servers[0]);
        ip(&format!("-n {} addr add fd77::1/64 dev eth0 nodad", near.name));
        ip(&format!(
            "-n {} addr add {SERVER_IPV6}/64 dev eth0 nodad",
            far.name
        ));
        ip(&format!(
            "-n {} -6 route add default via {SERVER_IPV6}",
            near.name
        ));
        far.redirect_ipv6("PREROUTING -p tcp -j REDIRECT --to-ports 15003");
        near.redirect_ipv6("OUTPUT -p tcp -d fd96::/16 -j REDIRECT --to-ports 15001");
    }

    pub(crate) fn new(servers: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "osm{:x}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let client = Host::new(format!("{id}-client"));
        let mut wire = Self {
            client,
            servers: vec![],
        };
        let client = &wire.client;
        for index in 0..servers {
            let server = Host::new(format!("{id}-{index}"));
            wire.servers.push(server.clone());
            let (near, far) = (&client.name, &server.name);
            ip(&format!(
                "link add eth{index} netns {near} type veth peer name eth0 netns {far}"
            ));
            ip(&format!("-n {near} addr add 10.77.{index}.1/24 dev eth{index}"));
            ip(&format!("-n {near} link set eth{index} up"));
            ip(&format!(
                "-n {far} addr add {}/24 dev eth0",
                server_address(index)
            ));
            ip(&format!("-n {far} link set eth0 up"));
            server.redirect("PREROUTING -p tcp -j REDIRECT --to-ports 15003");
        }
        ip(&format!("-n {} route add default via {SERVER}", client.name));
        // A neighbour that is there for the kernel but answers nothing: packets to it are lost, as to a dead node.
        ip(&format!(
            "-n {} neigh add {NOBODY} lladdr 02:00:00:00:00:09 dev eth0",
            client.name
        ));
        client.redirect("OUTPUT -p tcp -d 10.96.0.0/16 -j REDIRECT --to-ports 15001");
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for host in self.servers.iter().chain([&self.client]) {
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
