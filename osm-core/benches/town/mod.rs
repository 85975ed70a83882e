//! A mesh of any size, as facts: the same as the load generator writes to an API server.
//!
//! Services in namespaces of a hundred; each may call a few others, and many call the first.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use osm_core::{
    facts::{
        EndpointSlice, Fact, FactKind, HttpRouteGroup, MeshConfig, Namespace, Pod, Service, ServiceAccount,
        TrafficTarget, endpoint_slice::SliceEndpoint, pod::Proxy, service::ServicePort, traffic_target::Rule,
    },
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
    ir::{HttpMatch, Protocol, ServiceCertificate, TargetPort},
    mesh::{Engine, Event, Options},
    resource::{ResourceType, Snapshot},
    xds::{DeltaRequest, DeltaStream, Limits},
};
use uuid::Uuid;

/// Services that each may call, besides the first.
const UPSTREAMS: usize = 5;

/// How large a mesh is.
#[derive(Clone, Copy)]
pub(crate) struct Town {
    /// Services.
    pub(crate) services: usize,
    /// Pods of each.
    pub(crate) pods: usize,
    /// Whether everyone may call everyone.
    pub(crate) permissive: bool,
}

impl Town {
    fn identity(service: usize) -> ServiceIdentity {
        ServiceIdentity::new(namespace(service), name(service))
    }

    /// Who a pod's proxy is.
    pub(crate) fn proxy(&self, number: usize) -> ProxyIdentity {
        ProxyIdentity {
            uuid: Uuid::from_u128(number as u128 + 1),
            service: Self::identity(number / self.pods),
        }
    }

    /// The fact of a pod.
    pub(crate) fn pod(&self, number: usize) -> Fact {
        let service = number / self.pods;
        let proxy = self.proxy(number);
        let labels = [
            ("app".into(), name(service)),
            ("pod-template-hash".into(), "5d4f8c7b9".into()),
        ];
        Fact::Pod(Pod {
            namespace: namespace(service),
            name: format!("pod-{number}").into(),
            proxy: Some(Box::new(Proxy {
                uuid: proxy.uuid,
                uid: proxy.uuid.to_string().into(),
                created: 0,
                identity: proxy.service,
                labels: labels.into(),
                addresses: vec![address(number).into()],
                ports: BTreeMap::from([("http".into(), 8080)]),
                hostname: None,
                subdomain: None,
                scraped: true,
                doubted: false,
            })),
        })
    }

    /// The fact of a service's EndpointSlice, of which the first `ready` pods are ready.
    pub(crate) fn slice(&self, service: usize, ready: usize) -> Fact {
        let endpoint = |number: usize| SliceEndpoint {
            pod: format!("pod-{number}").into(),
            uid: "".into(),
            addresses: vec![address(number).into()],
            hostname: None,
            ready: true,
        };
        let first = service * self.pods;
        Fact::EndpointSlice(EndpointSlice {
            namespace: namespace(service),
            name: name(service),
            service: name(service),
            ports: vec![("http".into(), 8080)],
            endpoints: (first..first + ready.min(self.pods)).map(endpoint).collect(),
        })
    }

    /// The fact of who may call a service, without the last of them if so wanted.
    pub(crate) fn target(&self, service: usize, fewer: bool) -> Fact {
        let mut sources: Vec<_> = (0..self.services)
            .filter(|caller| self.calls(*caller, service))
            .map(Self::identity)
            .collect();
        sources.sort();
        if fewer {
            sources.pop();
        }
        Fact::TrafficTarget(TrafficTarget {
            namespace: namespace(service),
            name: name(service),
            destination: Self::identity(service),
            sources,
            rules: vec![Rule::Http {
                group: name(service),
                matches: Vec::new(),
            }],
        })
    }

    fn calls(&self, caller: usize, service: usize) -> bool {
        let hub = service == 0 && caller <= self.services / 10;
        let near = (1..=UPSTREAMS).any(|step| (caller + step * step * 7) % self.services == service);
        caller != service && (hub || near)
    }

    /// The fact of the MeshConfig.
    pub(crate) fn config(permissive: bool) -> Fact {
        let mut config = MeshConfig::absent("osm-system".into());
        config.permissive = permissive;
        Fact::MeshConfig(Box::new(config))
    }

    /// Everything, as the watches deliver it first.
    pub(crate) fn events(&self) -> Vec<Event> {
        let services = 0..self.services;
        let mut facts: BTreeMap<FactKind, Vec<Fact>> = BTreeMap::new();
        let mut add = |fact: Fact| facts.entry(fact.key().kind).or_default().push(fact);
        add(Self::config(self.permissive));
        for first in services.clone().step_by(100) {
            add(Fact::Namespace(Namespace {
                name: namespace(first),
                monitored_by: Some("osm".into()),
                ignored: false,
            }));
        }
        for service in services {
            add(Fact::ServiceAccount(ServiceAccount {
                namespace: namespace(service),
                name: name(service),
            }));
            add(Fact::Service(Service {
                namespace: namespace(service),
                name: name(service),
                created: 0,
                selector: BTreeMap::from([("app".into(), name(service))]),
                external: false,
                headless: false,
                addresses: vec![Ipv4Addr::from_bits(0x0a60_0001 + service as u32).into()],
                ports: vec![ServicePort {
                    name: "http".into(),
                    number: 80,
                    target: TargetPort::Number(8080),
                    protocol: Protocol::Http,
                }],
            }));
            let shape = |path: &str, method: &str| HttpMatch {
                path: Some(path.into()),
                method: Some(method.into()),
                headers: BTreeMap::new(),
            };
            add(Fact::HTTPRouteGroup(HttpRouteGroup {
                namespace: namespace(service),
                name: name(service),
                matches: BTreeMap::from([
                    ("read".into(), vec![shape("/api/.*", "GET")]),
                    ("write".into(), vec![shape("/api/items/.*", "POST")]),
                ]),
                problems: Vec::new(),
            }));
            add(self.target(service, false));
            add(self.slice(service, self.pods));
            for pod in service * self.pods..(service + 1) * self.pods {
                add(self.pod(pod));
            }
        }
        let mut events = vec![Event::Roots(
            "-----BEGIN CERTIFICATE-----\nroots\n".repeat(20).into(),
        )];
        for kind in FactKind::ALL {
            events.push(Event::Reset {
                kind,
                facts: facts.remove(&kind).unwrap_or_default(),
                malformed: Vec::new(),
            });
        }
        events.extend((0..self.services).map(|service| Event::Certificate {
            identity: Self::identity(service),
            certificate: Some(ServiceCertificate {
                chain: "chain ".repeat(150).into(),
                key: "key ".repeat(60).into(),
            }),
        }));
        events
    }

    /// An engine that knows all of it.
    pub(crate) fn engine(&self) -> Engine {
        let mut engine = Engine::new(Options {
            mesh_name: "osm".into(),
            osm_namespace: "osm-system".into(),
            trust_domain: TrustDomain::default(),
        });
        engine.apply(self.events());
        engine
    }
}

/// The stream of a proxy that has been sent everything and has accepted it.
pub(crate) fn synced(proxy: ProxyIdentity, snapshot: &Arc<Snapshot>) -> DeltaStream {
    let mut stream = DeltaStream::new(proxy.clone(), Limits::default());
    let class = snapshot.proxy(proxy.uuid).expect("a known proxy").class;
    let view = snapshot.view(class).expect("a class has a view").clone();
    for kind in ResourceType::ALL {
        let names = view.set(kind).iter().map(|entry| entry.0.to_string().into());
        let names = if kind.allows_wildcard() {
            Vec::new()
        } else {
            names.collect()
        };
        let request = DeltaRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        stream
            .on_request(&request, snapshot)
            .expect("a well-formed request");
        accept(&mut stream, snapshot);
    }
    stream
}

/// Answers what a stream sends until it sends nothing; how many resources it sent.
pub(crate) fn accept(stream: &mut DeltaStream, snapshot: &Arc<Snapshot>) -> usize {
    let mut sent = 0;
    loop {
        let responses = stream.next_responses(snapshot);
        if responses.is_empty() {
            return sent;
        }
        for response in responses {
            sent += response.resources.len();
            let answer = DeltaRequest {
                type_url: response.kind.type_url().into(),
                response_nonce: response.nonce.to_string(),
                ..Default::default()
            };
            stream
                .on_request(&answer, snapshot)
                .expect("a well-formed answer");
        }
    }
}

fn namespace(service: usize) -> Arc<str> {
    format!("town-{}", service / 100).into()
}

fn name(service: usize) -> Arc<str> {
    format!("service-{service}").into()
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a80_0001 + number as u32)
}
