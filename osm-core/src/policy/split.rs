//! Where the traffic to a service goes.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    facts::{Problem, Service, TrafficSplit},
    ir::ClusterKey,
};

/// Clusters and their shares, by service port. Never empty for a port of the service; shares sum to more than 0.
pub type Forwards = BTreeMap<u16, BTreeMap<ClusterKey, u32>>;

/// Where the traffic to each port of `service` goes: to the service itself, or to the backends of `split`.
///
/// A backend answers on its port of the same number (as in the original); one without that port is left out. A split
/// of which nothing is left for a port does not touch that port. A backend that is an apex itself is not followed, so
/// a service may be its own backend and splits cannot go in circles.
pub fn forwards<'a>(
    service: &Service,
    split: Option<&TrafficSplit>,
    find: impl Fn(&str) -> Option<&'a Service>,
) -> (Forwards, Vec<Problem>) {
    let mut problems = Vec::new();
    let backends: Vec<(&Service, u32)> = split.map_or_else(Vec::new, |split| {
        let known = |(name, weight): (&Arc<str>, &u32)| match find(name) {
            Some(backend) => Some((backend, *weight)),
            None => {
                let message =
                    format!("backend {name} is no service of the mesh: its share goes to the others");
                problems.push(Problem {
                    reason: "BackendNotFound",
                    message,
                });
                None
            }
        };
        split.backends.iter().filter_map(known).collect()
    });
    let mut forwards = Forwards::new();
    for port in &service.ports {
        let number = port.number;
        let mut shares = BTreeMap::new();
        for (backend, weight) in &backends {
            match backend.port(number) {
                Some(port) => {
                    let key = ClusterKey {
                        service: backend.key(),
                        target_port: port.target.clone(),
                    };
                    shares.insert(key, *weight);
                }
                None => problems.push(Problem {
                    reason: "BackendPortNotFound",
                    message: format!(
                        "backend {} has no port {number}: its share goes to the others",
                        backend.name
                    ),
                }),
            }
        }
        if shares.values().all(|weight| *weight == 0) {
            if let Some(split) = split {
                let message = format!(
                    "no backend with a weight has port {number}: {} answers itself",
                    split.apex
                );
                problems.push(Problem {
                    reason: "NoUsableBackend",
                    message,
                });
            }
            let own = ClusterKey {
                service: service.key(),
                target_port: port.target.clone(),
            };
            shares = BTreeMap::from([(own, 1)]);
        }
        forwards.insert(number, shares);
    }
    (forwards, problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::service::ServicePort,
        ir::{Protocol, TargetPort},
    };

    fn service(name: &str, ports: &[(u16, u16)]) -> Service {
        let port = |(number, target): &(u16, u16)| ServicePort {
            name: "".into(),
            number: *number,
            target: TargetPort::Number(*target),
            protocol: Protocol::Http,
        };
        Service {
            namespace: "s".into(),
            name: name.into(),
            created: 0,
            selector: BTreeMap::new(),
            external: false,
            headless: false,
            addresses: Vec::new(),
            ports: ports.iter().map(port).collect(),
        }
    }

    fn read(backends: &[(&str, u32)]) -> (Vec<String>, Vec<&'static str>) {
        let services = [
            service("web", &[(80, 8080), (90, 9090)]),
            service("v1", &[(80, 8081), (90, 9091)]),
            service("v2", &[(80, 8082)]),
        ];
        let split = TrafficSplit {
            namespace: "s".into(),
            name: "split".into(),
            created: 0,
            apex: "web".into(),
            backends: backends
                .iter()
                .map(|(name, weight)| ((*name).into(), *weight))
                .collect(),
        };
        let split = (!backends.is_empty()).then_some(&split);
        let (forwards, problems) = forwards(&services[0], split, |name| {
            services.iter().find(|service| &*service.name == name)
        });
        let shares = |(port, shares): (u16, BTreeMap<ClusterKey, u32>)| {
            let shares: Vec<_> = shares
                .iter()
                .map(|(key, weight)| format!("{}|{}*{weight}", key.service.name, key.target_port))
                .collect();
            format!("{port}: {}", shares.join(" "))
        };
        (
            forwards.into_iter().map(shares).collect(),
            problems.into_iter().map(|problem| problem.reason).collect(),
        )
    }

    #[test]
    fn traffic_goes_where_the_split_says() {
        let own = ["80: web|8080*1", "90: web|9090*1"];
        for (backends, forwards, problems) in [
            (&[][..], own, &[][..]),
            (
                &[("v1", 1), ("v2", 3)],
                ["80: v1|8081*1 v2|8082*3", "90: v1|9091*1"],
                &["BackendPortNotFound"],
            ),
            (
                &[("web", 1), ("v1", 1)],
                ["80: v1|8081*1 web|8080*1", "90: v1|9091*1 web|9090*1"],
                &[],
            ),
            (
                &[("v1", 0), ("v2", 1)],
                ["80: v1|8081*0 v2|8082*1", own[1]],
                &["BackendPortNotFound", "NoUsableBackend"],
            ),
            (
                &[("gone", 1)],
                own,
                &["BackendNotFound", "NoUsableBackend", "NoUsableBackend"],
            ),
            (
                &[("gone", 1), ("v1", 1)],
                ["80: v1|8081*1", "90: v1|9091*1"],
                &["BackendNotFound"],
            ),
        ] {
            assert_eq!(
                read(backends),
                (forwards.map(str::to_owned).to_vec(), problems.to_vec()),
                "{backends:?}"
            );
        }
    }
}
