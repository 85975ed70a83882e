//! A small mesh in which much can go wrong: few names, so that things meet.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use osm_core::{
    facts::{
        EndpointSlice, Fact, HttpRouteGroup, MeshConfig, Namespace, Pod, Service, ServiceAccount, TcpRoute,
        TrafficSplit, TrafficTarget, endpoint_slice::SliceEndpoint, pod::Proxy, service::ServicePort,
        traffic_target::Rule,
    },
    identity::{ServiceIdentity, TrustDomain},
    ir::{ExternalAuthorization, HttpMatch, Protocol, ServiceCertificate, TargetPort, Tracing},
    mesh::{Event, Options},
};
use uuid::Uuid;

pub(crate) fn options() -> Options {
    Options {
        mesh_name: "osm".into(),
        osm_namespace: "osm-system".into(),
        trust_domain: TrustDomain::default(),
    }
}

/// Choices: each call takes one of so many.
pub(crate) struct Choices {
    bytes: [u8; 16],
    next: usize,
}

impl Choices {
    pub(crate) fn new(bytes: [u8; 16]) -> Self {
        Self { bytes, next: 0 }
    }

    /// A number below `many`.
    pub(crate) fn of(&mut self, many: u8) -> u8 {
        let byte =
            self.bytes[self.next % 16].wrapping_add(u8::try_from(self.next / 16 * 37).expect("few choices"));
        self.next += 1;
        byte % many
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.of(2) == 1
    }

    fn name(&mut self, prefix: &str, many: u8) -> Arc<str> {
        format!("{prefix}{}", self.of(many)).into()
    }

    pub(crate) fn namespace(&mut self) -> Arc<str> {
        ["a", "b"][usize::from(self.of(2))].into()
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn namespace(name: Arc<str>, c: &mut Choices) -> Fact {
    let mesh = match c.of(6) {
        0 => None,
        1 => Some("other".into()),
        _ => Some("osm".into()),
    };
    Fact::Namespace(Namespace {
        name,
        monitored_by: mesh,
        ignored: c.of(8) == 7,
    })
}

pub(crate) fn service_name(c: &mut Choices) -> Arc<str> {
    c.name("svc", 4)
}

pub(crate) fn service(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let selector: &[(&str, &str)] = [
        &[("app", "x")][..],
        &[("app", "y")],
        &[("tier", "1")],
        &[("app", "x"), ("tier", "1")],
        &[],
    ][usize::from(c.of(5))];
    let headless = c.of(3) == 2;
    let index = u8::from(&*namespace == "b") * 4 + name.as_bytes()[3] - b'0';
    // Now and then an address that another service has too.
    let index = if c.of(8) == 7 { 0 } else { index };
    let mut addresses = vec![address(&format!("10.0.0.{index}"))];
    if c.flag() {
        addresses.push(address(&format!("fd00::{index}")));
    }
    let port = |name: &str, number, target, protocol| ServicePort {
        name: name.into(),
        number,
        target,
        protocol,
    };
    let web = TargetPort::Name("web".into());
    let ports = match c.of(6) {
        0 => vec![port("http", 80, TargetPort::Number(8080), Protocol::Http)],
        1 => vec![
            port("http", 80, web, Protocol::Http),
            port("tcp", 3306, TargetPort::Number(3306), Protocol::Tcp),
        ],
        2 => vec![port("tcp", 80, TargetPort::Number(8080), Protocol::Tcp)],
        3 => vec![
            port("http", 80, TargetPort::Number(8080), Protocol::Http),
            port("alt", 81, TargetPort::Number(8080), Protocol::Http),
            port("raw", 82, TargetPort::Number(8080), Protocol::Tcp),
            port("grpc", 8080, web, Protocol::Grpc),
        ],
        4 => vec![port(
            "tcp-server-first",
            8080,
            TargetPort::Number(8080),
            Protocol::TcpServerFirst,
        )],
        _ => vec![],
    };
    Fact::Service(Service {
        namespace,
        name,
        created: i64::from(c.of(3)),
        selector: selector
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        external: c.of(10) == 9,
        headless,
        addresses: if headless { Vec::new() } else { addresses },
        ports,
    })
}

pub(crate) fn pod_name(c: &mut Choices) -> Arc<str> {
    c.name("pod", 5)
}

pub(crate) fn account_name(c: &mut Choices) -> Arc<str> {
    c.name("sa", 3)
}

/// The number of a pod in the mesh.
fn pod_index(namespace: &str, name: &str) -> u8 {
    u8::from(namespace == "b") * 5 + name.as_bytes()[3] - b'0'
}

pub(crate) fn pod(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let index = pod_index(&namespace, &name);
    let text = |value: u8| -> Arc<str> { if value == 0 { "x" } else { "y" }.into() };
    let account = account_name(c);
    let (scraped, app, tier) = (c.of(4) == 3, c.of(2), c.flag());
    let mut labels = BTreeMap::from([("app".into(), text(app))]);
    if tier {
        labels.insert("tier".into(), "1".into());
    }
    let web = match c.of(3) {
        0 => None,
        1 => Some(8080),
        _ => Some(9090),
    };
    let mut addresses = vec![address(&format!("10.1.0.{index}"))];
    if c.of(3) == 2 {
        addresses.push(address(&format!("fd01::{index}")));
    }
    // Now and then a uuid that another pod has too.
    let uuid = if c.of(8) == 7 { 0 } else { index };
    let has_name = c.flag();
    let proxy = Proxy {
        uuid: Uuid::from_u128(u128::from(uuid) + 1),
        uid: format!("uid-{}", c.of(2)).into(),
        created: i64::from(c.of(3)),
        identity: ServiceIdentity::new(namespace.clone(), account),
        labels,
        addresses,
        ports: web.map(|number| ("web".into(), number)).into_iter().collect(),
        hostname: has_name.then(|| name.clone()),
        subdomain: has_name.then(|| service_name(c)),
        scraped,
        doubted: c.of(4) == 3,
    };
    let proxy = (c.of(8) != 7).then(|| Box::new(proxy));
    Fact::Pod(Pod {
        namespace,
        name,
        proxy,
    })
}

pub(crate) fn slice_name(c: &mut Choices) -> Arc<str> {
    c.name("slice", 6)
}

pub(crate) fn slice(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let service = service_name(c);
    let ports = [
        &[("http", 8080), ("tcp", 3306), ("grpc", 8080)][..],
        &[("http", 9090), ("tcp", 8080), ("alt", 8080), ("raw", 8080)],
        &[("tcp-server-first", 8080), ("http", 8080)],
    ][usize::from(c.of(3))];
    let mut endpoints = Vec::new();
    for number in 0..5 {
        if c.flag() {
            continue;
        }
        let pod: Arc<str> = format!("pod{number}").into();
        let index = pod_index(&namespace, &pod);
        let mut addresses = vec![address(&format!("10.1.0.{index}"))];
        match c.of(6) {
            0 => addresses.push(address(&format!("fd01::{index}"))),
            1 => addresses = vec![address("10.9.9.9")],
            _ => {}
        }
        let uid = match c.of(4) {
            0 => "",
            1 => "uid-1",
            _ => "uid-0",
        };
        let hostname = (c.of(3) == 2).then(|| pod.clone());
        endpoints.push(SliceEndpoint {
            pod,
            uid: uid.into(),
            addresses,
            hostname,
            ready: c.of(4) != 3,
        });
    }
    let ports = ports
        .iter()
        .map(|(name, number)| ((*name).into(), *number))
        .collect();
    Fact::EndpointSlice(EndpointSlice {
        namespace,
        name,
        service,
        ports,
        endpoints,
    })
}

pub(crate) fn account(namespace: Arc<str>, name: Arc<str>) -> Fact {
    Fact::ServiceAccount(ServiceAccount { namespace, name })
}

pub(crate) fn config(c: &mut Choices) -> Fact {
    let mut config = MeshConfig::absent("osm-system".into());
    config.permissive = c.flag();
    config.egress = c.flag();
    config.settings.active_health_checks = c.flag();
    if c.of(3) == 2 {
        config.settings.tracing = Some(Tracing {
            address: "jaeger".to_owned(),
            port: 9411,
            endpoint: "/spans".to_owned(),
        });
    }
    if c.of(3) == 2 {
        config.settings.external_authorization = Some(ExternalAuthorization {
            address: "authz".to_owned(),
            port: 9000,
            stat_prefix: "authz".to_owned(),
            timeout_ms: 1_000,
            failure_mode_allow: c.flag(),
        });
    }
    config.control.debug_server = c.flag();
    if c.of(10) == 9 {
        config.name = "another".into();
    }
    Fact::MeshConfig(Box::new(config))
}

pub(crate) fn target_name(c: &mut Choices) -> Arc<str> {
    c.name("target", 4)
}

pub(crate) fn target(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let destination = ServiceIdentity::new(namespace.clone(), account_name(c));
    let mut sources: Vec<_> = (0..c.of(3))
        .map(|_| ServiceIdentity::new(c.namespace(), account_name(c)))
        .collect();
    sources.sort();
    sources.dedup();
    let mut rules: Vec<_> = (0..=c.of(3))
        .map(|_| {
            if c.flag() {
                Rule::Tcp {
                    route: c.name("tcp", 2),
                }
            } else {
                let matches = (0..c.of(2)).map(|_| c.name("match", 3)).collect();
                Rule::Http {
                    group: c.name("group", 2),
                    matches,
                }
            }
        })
        .collect();
    rules.sort();
    rules.dedup();
    Fact::TrafficTarget(TrafficTarget {
        namespace,
        name,
        destination,
        sources,
        rules,
    })
}

pub(crate) fn group_name(c: &mut Choices) -> Arc<str> {
    c.name("group", 2)
}

pub(crate) fn group(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let mut matches = BTreeMap::<Arc<str>, Vec<HttpMatch>>::new();
    for _ in 0..c.of(3) {
        let path = ["/buy", "/.*", "/sell"][usize::from(c.of(3))];
        let shape = HttpMatch {
            path: c.flag().then(|| path.into()),
            ..HttpMatch::default()
        };
        matches.insert(c.name("match", 3), vec![shape]);
    }
    Fact::HTTPRouteGroup(HttpRouteGroup {
        namespace,
        name,
        matches,
        problems: Vec::new(),
    })
}

pub(crate) fn tcp_route_name(c: &mut Choices) -> Arc<str> {
    c.name("tcp", 2)
}

pub(crate) fn tcp_route(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let ports = [&[][..], &[8080], &[3306, 8080]][usize::from(c.of(3))];
    Fact::TCPRoute(TcpRoute {
        namespace,
        name,
        ports: ports.into(),
    })
}

pub(crate) fn split_name(c: &mut Choices) -> Arc<str> {
    c.name("split", 3)
}

pub(crate) fn split(namespace: Arc<str>, name: Arc<str>, c: &mut Choices) -> Fact {
    let mut backends: BTreeMap<Arc<str>, u32> = (0..=c.of(2))
        .map(|_| (service_name(c), u32::from(c.of(3))))
        .collect();
    if let Some(weight) = backends.values_mut().next() {
        *weight += 1;
    }
    let apex = service_name(c);
    Fact::TrafficSplit(TrafficSplit {
        namespace,
        name,
        created: i64::from(c.of(2)),
        apex,
        backends,
    })
}

pub(crate) fn certificate(c: &mut Choices) -> Event {
    let identity = ServiceIdentity::new(c.namespace(), account_name(c));
    let certificate = (c.of(4) != 3).then(|| ServiceCertificate {
        chain: format!("chain {} {identity}", c.of(2)).into(),
        key: "key".into(),
    });
    Event::Certificate {
        identity,
        certificate,
    }
}

/// A mesh in which much works already: every service has pods behind it that are ready.
pub(crate) fn baseline() -> Vec<Event> {
    let mut events = vec![Event::Roots("root 0".into())];
    for (index, namespace_name) in ["a", "b"].into_iter().enumerate() {
        let n: Arc<str> = namespace_name.into();
        let mut c = Choices::new([2; 16]);
        events.push(Event::Upsert(namespace(n.clone(), &mut c)));
        for number in 0..3_u8 {
            let name: Arc<str> = format!("svc{number}").into();
            let kind = [0, 1, 4][usize::from(number)];
            let mut c = Choices::new([number % 2, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            events.push(Event::Upsert(service(n.clone(), name.clone(), &mut c)));
            let pods = if number % 2 == 0 { [0, 2] } else { [1, 3] };
            let endpoints = pods.map(|pod| SliceEndpoint {
                pod: format!("pod{pod}").into(),
                uid: "uid-0".into(),
                addresses: vec![address(&format!("10.1.0.{}", usize::from(pod as u8) + index * 5))],
                hostname: None,
                ready: true,
            });
            let ports = [("http", 8080), ("tcp", 3306), ("tcp-server-first", 8080)];
            events.push(Event::Upsert(Fact::EndpointSlice(EndpointSlice {
                namespace: n.clone(),
                name: format!("slice{number}").into(),
                service: name,
                ports: ports.iter().map(|(name, port)| ((*name).into(), *port)).collect(),
                endpoints: endpoints.into(),
            })));
            events.push(Event::Upsert(account(n.clone(), format!("sa{number}").into())));
        }
        for number in 0..4_u8 {
            let mut c = Choices::new([number % 3, 0, number % 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            events.push(Event::Upsert(pod(
                n.clone(),
                format!("pod{number}").into(),
                &mut c,
            )));
        }
        let rules = vec![
            Rule::Http {
                group: "group0".into(),
                matches: Vec::new(),
            },
            Rule::Tcp { route: "tcp0".into() },
        ];
        events.push(Event::Upsert(Fact::TrafficTarget(TrafficTarget {
            namespace: n.clone(),
            name: "target0".into(),
            destination: ServiceIdentity::new(n.clone(), "sa0"),
            sources: vec![ServiceIdentity::new("a", "sa1"), ServiceIdentity::new("b", "sa1")],
            rules,
        })));
        let matches = BTreeMap::from([("match0".into(), vec![HttpMatch::default()])]);
        events.push(Event::Upsert(Fact::HTTPRouteGroup(HttpRouteGroup {
            namespace: n.clone(),
            name: "group0".into(),
            matches,
            problems: Vec::new(),
        })));
        events.push(Event::Upsert(Fact::TCPRoute(TcpRoute {
            namespace: n.clone(),
            name: "tcp0".into(),
            ports: Vec::new(),
        })));
    }
    events
}
