//! The rules in the kernel: in network namespaces made here, with real connections.
//!
//! One namespace is the pod, with "Envoy" listening at the two ports traffic is redirected to; the other is the rest
//! of the world. Every listener says its name to whoever connects, so a connection tells where it ended up.

use std::{
    io::Write,
    net::TcpListener,
    process::{Command, Output},
    thread,
};

use nix::sched::{CloneFlags, setns};

const POD: &str = "10.77.0.2";
const WORLD: &str = "10.77.0.1";
const POD_V6: &str = "fd77::2";
const WORLD_V6: &str = "fd77::1";

/// Two namespaces with a wire between them; gone when dropped.
struct Network {
    pod: String,
    world: String,
}

impl Network {
    fn new(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let unique = |side| format!("osm-{name}-{side}-{}", std::process::id());
        let network = Self {
            pod: unique("pod"),
            world: unique("world"),
        };
        for namespace in [&network.pod, &network.world] {
            ip(&["netns", "add", namespace]);
            network.run(namespace, 0, &["ip", "link", "set", "lo", "up"]);
        }
        ip(&[
            "link",
            "add",
            "eth0",
            "netns",
            &network.pod,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &network.world,
        ]);
        for (namespace, v4, v6) in [(&network.pod, POD, POD_V6), (&network.world, WORLD, WORLD_V6)] {
            network.run(
                namespace,
                0,
                &["ip", "address", "add", &format!("{v4}/24"), "dev", "eth0"],
            );
            network.run(
                namespace,
                0,
                &[
                    "ip",
                    "address",
                    "add",
                    &format!("{v6}/64"),
                    "dev",
                    "eth0",
                    "nodad",
                ],
            );
            network.run(namespace, 0, &["ip", "link", "set", "eth0", "up"]);
        }
        network
    }

    /// Runs a command in a namespace as a user.
    fn run(&self, namespace: &str, uid: u32, command: &[&str]) -> Output {
        let uid = uid.to_string();
        let output = Command::new("ip")
            .args([
                "netns",
                "exec",
                namespace,
                "setpriv",
                "--reuid",
                &uid,
                "--clear-groups",
            ])
            .args(command)
            .output()
            .expect("ip runs");
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    fn redirect(&self, arguments: &[&str]) {
        let program = env!("CARGO_BIN_EXE_osm-sidecar");
        self.run(&self.pod, 0, &[&[program, "redirect"], arguments].concat());
    }

    fn rules(&self) -> String {
        let rules = [["iptables-save", "-t", "nat"], ["ip6tables-save", "-t", "nat"]]
            .map(|command| String::from_utf8(self.run(&self.pod, 0, &command).stdout).expect("text"));
        let lines = rules.iter().flat_map(|rules| rules.lines());
        lines
            .filter(|line| line.starts_with("-A"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Listens in a namespace and says `name` to everyone.
    fn listen(&self, namespace: &str, address: &str, name: &'static str) {
        let (namespace, address) = (namespace.to_owned(), address.to_owned());
        let (ready, wait) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let file = std::fs::File::open(format!("/var/run/netns/{namespace}")).expect("the namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
            let listener = TcpListener::bind(&address).expect("a port");
            ready.send(()).expect("awaited");
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
            }
        });
        wait.recv().expect("listening");
    }

    /// Who answers a connection from `namespace` as `uid`.
    fn connect(&self, namespace: &str, uid: u32, host: &str, port: u16) -> String {
        let script = format!("exec 3<>/dev/tcp/{host}/{port} && cat <&3");
        let output = self.run(namespace, uid, &["timeout", "3", "bash", "-c", &script]);
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.world] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const APPLICATION: u32 = 1000;
const ENVOY: u32 = 1500;

#[test]
fn traffic_goes_through_envoy_but_for_what_is_excluded() {
    let network = Network::new("a");
    let (pod, world) = (&network.pod, &network.world);
    network.listen(pod, "[::]:15001", "outbound");
    network.listen(pod, "[::]:15003", "inbound");
    network.listen(pod, "[::]:8080", "application");
    network.listen(pod, "[::]:2222", "application");
    network.listen(pod, "[::]:15902", "probe");
    for port in [80, 6379, 7000] {
        network.listen(world, &format!("[::]:{port}"), "world");
    }
    network.redirect(&[
        "--inbound-port-exclusion-list=2222",
        "--outbound-port-exclusion-list=7000,6379,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
    ]);
    for (there, here) in [(WORLD, POD), (WORLD_V6, POD_V6)] {
        assert_eq!(network.connect(pod, APPLICATION, there, 80), "outbound");
        assert_eq!(network.connect(pod, 0, there, 80), "outbound");
        assert_eq!(network.connect(pod, ENVOY, there, 80), "world");
        assert_eq!(network.connect(pod, APPLICATION, there, 6379), "world");
        assert_eq!(network.connect(pod, APPLICATION, there, 7000), "world");
        assert_eq!(network.connect(world, APPLICATION, here, 8080), "inbound");
        assert_eq!(network.connect(world, APPLICATION, here, 2222), "application");
        assert_eq!(network.connect(world, APPLICATION, here, 15902), "probe");
        // The application to its own address; Envoy to the pod's address, as for a service of the pod itself.
        assert_eq!(network.connect(pod, APPLICATION, here, 8080), "application");
        assert_eq!(network.connect(pod, ENVOY, here, 8080), "inbound");
    }
    for loopback in ["127.0.0.1", "::1"] {
        assert_eq!(network.connect(pod, ENVOY, loopback, 8080), "application");
        assert_eq!(network.connect(pod, APPLICATION, loopback, 8080), "application");
    }
}

#[test]
fn ranges_interfaces_and_the_pods_own_address() {
    let network = Network::new("b");
    let (pod, world) = (&network.pod, &network.world);
    network.listen(pod, "[::]:15001", "outbound");
    network.listen(pod, "[::]:15003", "inbound");
    network.listen(world, "[::]:80", "world");
    let outbound = || [WORLD, WORLD_V6].map(|there| network.connect(pod, APPLICATION, there, 80));
    network.redirect(&["--outbound-ip-range-exclusion-list=10.77.0.0/24"]);
    assert_eq!(outbound(), ["world", "outbound"]);
    network.redirect(&["--outbound-ip-range-exclusion-list=fd77::/64"]);
    assert_eq!(outbound(), ["outbound", "world"]);
    network.redirect(&["--outbound-ip-range-inclusion-list=10.77.0.1/32"]);
    assert_eq!(outbound(), ["outbound", "world"]);
    network.redirect(&["--outbound-ip-range-inclusion-list=10.99.0.0/16"]);
    assert_eq!(outbound(), ["world", "world"]);
    network.redirect(&["--network-interface-exclusion-list=eth0"]);
    assert_eq!(outbound(), ["world", "world"]);

    network.listen(pod, &format!("{POD}:8080"), "application");
    network.listen(pod, "127.0.0.1:15000", "admin");
    network.redirect(&["--local-proxy-mode=PodIP", "--pod-ip", POD]);
    assert_eq!(network.connect(pod, ENVOY, "127.0.0.1", 8080), "application");
    assert_eq!(network.connect(pod, ENVOY, "127.0.0.1", 15000), "admin");
    assert_eq!(network.connect(world, APPLICATION, POD, 8080), "inbound");
}

#[test]
fn running_again_leaves_the_same_rules() {
    let network = Network::new("c");
    network.run(
        &network.pod,
        0,
        &[
            "iptables", "-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "RETURN",
        ],
    );
    let arguments = [
        "--inbound-port-exclusion-list=1,2",
        "--outbound-ip-range-exclusion-list=10.0.0.0/8",
    ];
    network.redirect(&arguments);
    let once = network.rules();
    assert!(
        once.contains("-A OUTPUT -p udp -j RETURN"),
        "what others made stays: {once}"
    );
    for _ in 0..3 {
        network.redirect(&arguments);
    }
    assert_eq!(network.rules(), once);
    assert_eq!(
        once.matches("-A OUTPUT -p tcp -j OSM_PROXY_OUTBOUND").count(),
        2,
        "one a protocol: {once}"
    );
    network.redirect(&[]);
    assert!(
        !network.rules().contains("10.0.0.0/8"),
        "other arguments replace the rules"
    );
}
