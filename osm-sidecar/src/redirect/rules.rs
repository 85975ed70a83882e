//! The rules, as one transaction for `iptables-restore`.
//!
//! Pure: arguments in, text out. Invariants: applied to a namespace in any state, also one it was applied to before,
//! the transaction leaves the same rules; chains and their meaning are the original's.

use std::{
    fmt::{self, Display, Write},
    net::IpAddr,
};

use ipnet::IpNet;

/// Ports of the sidecar itself that others reach as they are: statistics, three kinds of probes, and the helper.
const OWN_PORTS: [u16; 5] = [15010, 15901, 15902, 15903, 15904];
/// Envoy's admin endpoint, which listens on loopback alone.
const ADMIN_PORT: u16 = 15000;
/// Most ports of one `multiport` match.
const MULTIPORT: usize = 15;

const CHAINS: [&str; 4] = [
    "OSM_PROXY_INBOUND",
    "OSM_PROXY_IN_REDIRECT",
    "OSM_PROXY_OUTBOUND",
    "OSM_PROXY_OUT_REDIRECT",
];

/// What is redirected, and what not.
#[derive(Debug, Clone, Default)]
pub(super) struct Redirection {
    pub(super) proxy_uid: u32,
    pub(super) inbound_port: u16,
    pub(super) outbound_port: u16,
    pub(super) inbound_port_exclusions: Vec<u16>,
    pub(super) outbound_port_exclusions: Vec<u16>,
    pub(super) outbound_range_exclusions: Vec<IpNet>,
    pub(super) outbound_range_inclusions: Vec<IpNet>,
    pub(super) interface_exclusions: Vec<String>,
    /// Where Envoy reaches the application, if not at 127.0.0.1.
    pub(super) pod_ip: Option<IpAddr>,
}

/// The Internet Protocol, of which iptables has one set of rules per version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1/32",
            Self::V6 => "::1/128",
        }
    }

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// The transaction. `present` is the output of `iptables-save -t nat`.
pub(super) fn transaction(redirection: &Redirection, family: Family, present: &str) -> String {
    let mut rules = Rules::default();
    rules.line("*nat");
    for chain in CHAINS {
        // Made, or emptied if it is there.
        rules.line(format_args!(":{chain} - [0:0]"));
    }
    for rule in present.lines().filter_map(jump) {
        rules.line(format_args!("-D {rule}"));
    }
    inbound(&mut rules, redirection);
    outbound(&mut rules, redirection, family);
    rules.line("COMMIT");
    rules.text
}

fn inbound(rules: &mut Rules, redirection: &Redirection) {
    rules.add(
        "OSM_PROXY_IN_REDIRECT",
        format_args!("-p tcp -j REDIRECT --to-ports {}", redirection.inbound_port),
    );
    rules.add("PREROUTING", "-p tcp -j OSM_PROXY_INBOUND");
    for interface in &redirection.interface_exclusions {
        rules.add("OSM_PROXY_INBOUND", format_args!("-i {interface} -j RETURN"));
    }
    rules.add_ports("OSM_PROXY_INBOUND", &redirection.inbound_port_exclusions);
    rules.add_ports("OSM_PROXY_INBOUND", &OWN_PORTS);
    rules.add("OSM_PROXY_INBOUND", "-p tcp -j OSM_PROXY_IN_REDIRECT");
}

fn outbound(rules: &mut Rules, redirection: &Redirection, family: Family) {
    const CHAIN: &str = "OSM_PROXY_OUTBOUND";
    let (uid, loopback) = (redirection.proxy_uid, family.loopback());
    let ranges = |ranges: &[IpNet]| -> Vec<IpNet> {
        ranges
            .iter()
            .filter(|range| family.has(range.addr()))
            .copied()
            .collect()
    };
    rules.add(
        "OSM_PROXY_OUT_REDIRECT",
        format_args!("-p tcp -j REDIRECT --to-ports {}", redirection.outbound_port),
    );
    rules.add("OUTPUT", format_args!("-p tcp -j {CHAIN}"));
    if let Some(pod_ip) = redirection.pod_ip.filter(|address| family.has(*address)) {
        // Envoy to the application, which listens on the pod's address; Envoy's own admin endpoint does not.
        rules.add(CHAIN, format_args!(
            "-d {loopback} -o lo -p tcp -m tcp ! --dport {ADMIN_PORT} -m owner --uid-owner {uid} -j DNAT --to-destination {pod_ip}"
        ));
    }
    // The application to a service that turns out to be its own pod: Envoy has sent it out, and takes it in again.
    rules.add(
        CHAIN,
        format_args!("! -d {loopback} -o lo -m owner --uid-owner {uid} -j OSM_PROXY_IN_REDIRECT"),
    );
    // The application to itself.
    rules.add(
        CHAIN,
        format_args!("-o lo -m owner ! --uid-owner {uid} -j RETURN"),
    );
    rules.add(CHAIN, format_args!("-m owner --uid-owner {uid} -j RETURN"));
    rules.add(CHAIN, format_args!("-d {loopback} -j RETURN"));
    for interface in &redirection.interface_exclusions {
        rules.add(CHAIN, format_args!("-o {interface} -j RETURN"));
    }
    for range in ranges(&redirection.outbound_range_exclusions) {
        rules.add(CHAIN, format_args!("-d {range} -j RETURN"));
    }
    rules.add_ports(CHAIN, &redirection.outbound_port_exclusions);
    for range in ranges(&redirection.outbound_range_inclusions) {
        rules.add(CHAIN, format_args!("-d {range} -j OSM_PROXY_OUT_REDIRECT"));
    }
    // A list of one version's ranges leaves all of the other's out.
    let only_listed = !redirection.outbound_range_inclusions.is_empty();
    rules.add(
        CHAIN,
        if only_listed {
            "-j RETURN"
        } else {
            "-j OSM_PROXY_OUT_REDIRECT"
        },
    );
}

/// A rule of a built-in chain that jumps to one of ours: what an earlier run has left.
fn jump(line: &str) -> Option<&str> {
    let rule = line.strip_prefix("-A ")?;
    let built_in = rule.starts_with("PREROUTING ") || rule.starts_with("OUTPUT ");
    let target = rule.split_whitespace().skip_while(|word| *word != "-j").nth(1)?;
    (built_in && CHAINS.contains(&target)).then_some(rule)
}

#[derive(Default)]
struct Rules {
    text: String,
}

impl Rules {
    fn line(&mut self, line: impl Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn add(&mut self, chain: &str, rule: impl Display) {
        self.line(format_args!("-A {chain} {rule}"));
    }

    /// Connections to these ports go on without Envoy.
    fn add_ports(&mut self, chain: &str, ports: &[u16]) {
        for ports in ports.chunks(MULTIPORT) {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            self.add(
                chain,
                format_args!("-p tcp -m multiport --dports {} -j RETURN", ports.join(",")),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirection() -> Redirection {
        Redirection {
            proxy_uid: 1500,
            inbound_port: 15003,
            outbound_port: 15001,
            ..Default::default()
        }
    }

    fn range(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn nothing_excluded() {
        let expected = "\
*nat
:OSM_PROXY_INBOUND - [0:0]
:OSM_PROXY_IN_REDIRECT - [0:0]
:OSM_PROXY_OUTBOUND - [0:0]
:OSM_PROXY_OUT_REDIRECT - [0:0]
-A OSM_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15003
-A PREROUTING -p tcp -j OSM_PROXY_INBOUND
-A OSM_PROXY_INBOUND -p tcp -m multiport --dports 15010,15901,15902,15903,15904 -j RETURN
-A OSM_PROXY_INBOUND -p tcp -j OSM_PROXY_IN_REDIRECT
-A OSM_PROXY_OUT_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A OUTPUT -p tcp -j OSM_PROXY_OUTBOUND
-A OSM_PROXY_OUTBOUND ! -d 127.0.0.1/32 -o lo -m owner --uid-owner 1500 -j OSM_PROXY_IN_REDIRECT
-A OSM_PROXY_OUTBOUND -o lo -m owner ! --uid-owner 1500 -j RETURN
-A OSM_PROXY_OUTBOUND -m owner --uid-owner 1500 -j RETURN
-A OSM_PROXY_OUTBOUND -d 127.0.0.1/32 -j RETURN
-A OSM_PROXY_OUTBOUND -j OSM_PROXY_OUT_REDIRECT
COMMIT
";
        assert_eq!(transaction(&redirection(), Family::V4, ""), expected);
    }

    #[test]
    fn everything_excluded() {
        let redirection = Redirection {
            inbound_port_exclusions: vec![2222],
            outbound_port_exclusions: (1..=17).collect(),
            outbound_range_exclusions: vec![range("10.1.0.0/16"), range("fd01::/16")],
            outbound_range_inclusions: vec![range("10.0.0.0/8"), range("fd00::/8")],
            interface_exclusions: vec!["net1".to_owned()],
            pod_ip: Some(IpAddr::from([10, 0, 0, 7])),
            ..redirection()
        };
        let v4 = "\
*nat
:OSM_PROXY_INBOUND - [0:0]
:OSM_PROXY_IN_REDIRECT - [0:0]
:OSM_PROXY_OUTBOUND - [0:0]
:OSM_PROXY_OUT_REDIRECT - [0:0]
-A OSM_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15003
-A PREROUTING -p tcp -j OSM_PROXY_INBOUND
-A OSM_PROXY_INBOUND -i net1 -j RETURN
-A OSM_PROXY_INBOUND -p tcp -m multiport --dports 2222 -j RETURN
-A OSM_PROXY_INBOUND -p tcp -m multiport --dports 15010,15901,15902,15903,15904 -j RETURN
-A OSM_PROXY_INBOUND -p tcp -j OSM_PROXY_IN_REDIRECT
-A OSM_PROXY_OUT_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A OUTPUT -p tcp -j OSM_PROXY_OUTBOUND
-A OSM_PROXY_OUTBOUND -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15000 -m owner --uid-owner 1500 -j DNAT --to-destination 10.0.0.7
-A OSM_PROXY_OUTBOUND ! -d 127.0.0.1/32 -o lo -m owner --uid-owner 1500 -j OSM_PROXY_IN_REDIRECT
-A OSM_PROXY_OUTBOUND -o lo -m owner ! --uid-owner 1500 -j RETURN
-A OSM_PROXY_OUTBOUND -m owner --uid-owner 1500 -j RETURN
-A OSM_PROXY_OUTBOUND -d 127.0.0.1/32 -j RETURN
-A OSM_PROXY_OUTBOUND -o net1 -j RETURN
-A OSM_PROXY_OUTBOUND -d 10.1.0.0/16 -j RETURN
-A OSM_PROXY_OUTBOUND -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j RETURN
-A OSM_PROXY_OUTBOUND -p tcp -m multiport --dports 16,17 -j RETURN
-A OSM_PROXY_OUTBOUND -d 10.0.0.0/8 -j OSM_PROXY_OUT_REDIRECT
-A OSM_PROXY_OUTBOUND -j RETURN
COMMIT
";
        assert_eq!(transaction(&redirection, Family::V4, ""), v4);
        let v6 = transaction(&redirection, Family::V6, "");
        assert!(!v6.contains("10."), "{v6}");
        assert!(!v6.contains("DNAT"), "{v6}");
        assert!(
            v6.contains("-d fd01::/16 -j RETURN") && v6.contains("-d fd00::/8 -j OSM_PROXY_OUT_REDIRECT")
        );
    }

    #[test]
    fn what_an_earlier_run_left_is_replaced_and_what_others_have_stays() {
        let present = "\
*nat
:OUTPUT ACCEPT [0:0]
:OSM_PROXY_OUTBOUND - [0:0]
-A PREROUTING -p tcp -j OSM_PROXY_INBOUND
-A OUTPUT -p tcp -j OSM_PROXY_OUTBOUND
-A OUTPUT -p tcp -j OSM_PROXY_OUTBOUND
-A OUTPUT -d 10.0.0.1/32 -j DNAT --to-destination 10.0.0.2
-A OSM_PROXY_OUTBOUND -j OSM_PROXY_OUT_REDIRECT
COMMIT
";
        let transaction = transaction(&redirection(), Family::V4, present);
        let deleted: Vec<&str> = transaction
            .lines()
            .filter(|line| line.starts_with("-D"))
            .collect();
        let expected = [
            "-D PREROUTING -p tcp -j OSM_PROXY_INBOUND",
            "-D OUTPUT -p tcp -j OSM_PROXY_OUTBOUND",
            "-D OUTPUT -p tcp -j OSM_PROXY_OUTBOUND",
        ];
        assert_eq!(deleted, expected);
    }
}
