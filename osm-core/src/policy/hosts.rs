//! The hosts a service answers to.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{api::names::CLUSTER_DOMAIN, ir::ServiceKey};

/// The hosts by which requests may name a service: its name in every degree of qualification and its own addresses,
/// each plain and with each of the ports.
///
/// Clients of the same namespace (`local`) may leave the namespace out, as their resolver does.
pub fn of(key: &ServiceKey, addresses: &[IpAddr], ports: &BTreeSet<u16>, local: bool) -> BTreeSet<String> {
    let host = key.host();
    let mut names = Vec::new();
    if local {
        names.push(host.clone());
    }
    let mut name = format!("{host}.{}", key.namespace);
    names.push(name.clone());
    for label in std::iter::once("svc").chain(CLUSTER_DOMAIN.split('.')) {
        name = format!("{name}.{label}");
        names.push(name.clone());
    }
    names.extend(addresses.iter().map(|address| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }));
    let mut hosts = BTreeSet::new();
    for name in names {
        hosts.extend(ports.iter().map(|port| format!("{name}:{port}")));
        hosts.insert(name);
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_every_degree_of_its_name() {
        let key = ServiceKey::new("shop", "web");
        let addresses = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let hosts = of(&key, &addresses, &BTreeSet::from([80]), false);
        let plain: Vec<_> = hosts.iter().filter(|host| !host.ends_with(":80")).collect();
        let expected = [
            "10.0.0.7",
            "[fd00::7]",
            "web.shop",
            "web.shop.svc",
            "web.shop.svc.cluster",
            "web.shop.svc.cluster.local",
        ];
        assert_eq!(plain, expected);
        assert_eq!(hosts.len(), 2 * plain.len());

        let local = of(&key.pod("web-0"), &[], &BTreeSet::from([80, 8080]), true);
        for host in [
            "web-0.web",
            "web-0.web:8080",
            "web-0.web.shop:80",
            "web-0.web.shop.svc.cluster.local",
        ] {
            assert!(local.contains(host), "{host}");
        }
        assert!(!local.contains("web"));
    }
}
