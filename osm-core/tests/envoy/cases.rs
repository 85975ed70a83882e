//! Sidecars of every kind, as IR values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use osm_core::{api::names, ir::*};

/// What one sidecar is told.
#[derive(Clone, Default)]
pub(crate) struct Sidecar {
    pub(crate) name: &'static str,
    pub(crate) settings: Settings,
    pub(crate) upstreams: Vec<UpstreamCluster>,
    pub(crate) endpoints: Vec<ClusterEndpoints>,
    pub(crate) locals: Vec<LocalCluster>,
    pub(crate) outbound: Option<OutboundListener>,
    pub(crate) inbound: Option<InboundListener>,
    pub(crate) outbound_routes: Vec<OutboundRoutes>,
    pub(crate) inbound_routes: Vec<InboundRoutes>,
    /// Names of its validation contexts; the roots are the test's.
    pub(crate) contexts: BTreeSet<&'static str>,
    pub(crate) scraped: bool,
    /// Whether its pod has an IPv6 address.
    pub(crate) ipv6: bool,
}

pub(crate) fn service(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name)
}

fn key(service: &ServiceKey, port: u16) -> ClusterKey {
    ClusterKey {
        service: service.clone(),
        target_port: TargetPort::Number(port),
    }
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

fn cluster_ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 96, 0, last).into()
}

fn share(service: &ServiceKey, port: u16, weight: u32) -> WeightedCluster {
    WeightedCluster {
        cluster: key(service, port).to_string(),
        weight,
    }
}

pub(crate) fn principal(account: &str) -> String {
    format!("{account}.shop.cluster.local")
}

fn hosts(service: &ServiceKey, port: u16) -> Vec<String> {
    let host = service.host();
    let names = [
        host.clone(),
        format!("{host}.shop"),
        format!("{host}.shop.svc"),
        service.fqdn(),
    ];
    let mut hosts: Vec<_> = names
        .iter()
        .flat_map(|name| [name.clone(), format!("{name}:{port}")])
        .collect();
    hosts.sort();
    hosts
}

impl Sidecar {
    fn new(name: &'static str) -> Self {
        let tls = TlsParameters {
            minimum: 3,
            maximum: 4,
            cipher_suites: vec!["ECDHE-ECDSA-AES128-GCM-SHA256".into()],
            ecdh_curves: vec!["P-256".into()],
        };
        Self {
            name,
            settings: Settings {
                tls,
                ..Settings::default()
            },
            ..Self::default()
        }
    }

    /// Adds the cluster of a service port, its endpoints and the roots its certificates are checked with.
    fn upstream(mut self, service: &ServiceKey, port: u16, endpoints: &[u8]) -> Self {
        let key = key(service, port);
        let endpoints = endpoints
            .iter()
            .map(|last| Endpoint {
                address: ip(*last),
                port,
            })
            .collect();
        self.upstreams.push(UpstreamCluster {
            key: key.clone(),
            servers: vec![principal(&service.name)],
        });
        self.endpoints.push(ClusterEndpoints { key, endpoints });
        self.contexts.insert(names::ROOT_CERTIFICATE_OUTBOUND);
        self
    }

    /// Adds a filter chain to the outbound listener.
    fn to(
        mut self,
        service: &ServiceKey,
        port: u16,
        addresses: &[IpAddr],
        kind: Protocol,
        to: Forward,
    ) -> Self {
        self.outbound.get_or_insert_default().chains.push(OutboundChain {
            name: format!("outbound_{service}_{port}_{kind}"),
            port,
            addresses: addresses.to_vec(),
            protocol: kind,
            forward: to,
        });
        self
    }

    /// Adds the routes to a service port and a filter chain that uses them.
    fn http_to(self, service: &ServiceKey, port: u16, kind: Protocol, clusters: &[WeightedCluster]) -> Self {
        let name = format!("rds-outbound.{service}|{port}");
        let mut this = self.to(
            service,
            port,
            &[cluster_ip(1)],
            kind,
            Forward::Routes(name.clone()),
        );
        this.outbound_routes.push(OutboundRoutes {
            name,
            virtual_host: format!("outbound_virtual-host|{}", service.fqdn()),
            domains: hosts(service, port),
            clusters: clusters.to_vec(),
        });
        this
    }

    /// Adds a service port of the sidecar's own application.
    fn serve(
        mut self,
        service: &ServiceKey,
        port: u16,
        kind: Protocol,
        access: Option<ConnectionAccess>,
    ) -> Self {
        let local = key(service, port).local();
        let forward = if kind.is_http() {
            Forward::Routes(format!("rds-inbound.{port}"))
        } else {
            Forward::Clusters(vec![WeightedCluster {
                cluster: local.clone(),
                weight: 100,
            }])
        };
        self.locals.push(LocalCluster { name: local, port });
        self.inbound.get_or_insert_default().chains.push(InboundChain {
            name: format!("inbound_{service}_{port}_{kind}"),
            port,
            server_name: service.fqdn(),
            forward,
            judges_paths: false,
            access,
        });
        self.contexts.insert(names::ROOT_CERTIFICATE_INBOUND);
        self
    }

    /// The same TCP client, of another service.
    pub(crate) fn renamed(mut self, service: &ServiceKey, port: u16) -> Self {
        let chain = self.outbound.take().unwrap().chains.remove(0);
        let endpoint = self.endpoints.remove(0).endpoints[0];
        (self.upstreams, self.endpoints, self.contexts) = Default::default();
        let share = vec![share(service, port, 100)];
        let mut this = self.upstream(service, port, &[1]).to(
            service,
            port,
            &chain.addresses,
            chain.protocol,
            Forward::Clusters(share),
        );
        this.endpoints[0].endpoints[0].address = endpoint.address;
        this
    }

    /// Adds a port to the server, with the routes of another.
    pub(crate) fn add_port(&mut self, service_name: &str, port: u16, like: u16) {
        let service = service(service_name);
        let routes = self
            .inbound_routes
            .iter()
            .find(|it| it.name.ends_with(&like.to_string()))
            .unwrap();
        let routes = routes.virtual_hosts[0].routes.clone();
        let this = std::mem::take(self).serve(&service, port, Protocol::Http, None);
        *self = this.routes(&service, port, routes);
        // The service port's clients name the same hosts, whichever pod they reach.
        self.inbound_routes
            .iter_mut()
            .for_each(|it| it.virtual_hosts[0].domains = vec!["*".into()]);
    }

    /// Adds the routes of an HTTP port of the application.
    fn routes(mut self, service: &ServiceKey, port: u16, routes: Vec<InboundRoute>) -> Self {
        let judges_paths = routes.iter().any(|route| route.request.path.is_some());
        let chains = self.inbound.iter_mut().flat_map(|listener| &mut listener.chains);
        chains
            .filter(|chain| chain.port == port)
            .for_each(|chain| chain.judges_paths = judges_paths);
        self.inbound_routes.push(InboundRoutes {
            name: format!("rds-inbound.{port}"),
            virtual_hosts: vec![InboundVirtualHost {
                name: format!("inbound_virtual-host|{}", service.fqdn()),
                domains: hosts(service, port),
                routes,
                cluster: key(service, port).local(),
            }],
        });
        self
    }
}

fn grant(principals: &[&str], ports: &[u16]) -> ConnectionAccess {
    let grant = ConnectionGrant {
        principals: principals.iter().map(|account| principal(account)).collect(),
        ports: ports.to_vec(),
    };
    ConnectionAccess {
        grants: BTreeMap::from([("shop/buyers".to_owned(), grant)]),
    }
}

fn anyone() -> Vec<InboundRoute> {
    vec![InboundRoute {
        request: HttpMatch::default(),
        principals: None,
    }]
}

/// A route for requests with this path, method and header.
fn rule(path: &str, method: &str, header: Option<(&str, &str)>, principals: &[&str]) -> InboundRoute {
    InboundRoute {
        request: HttpMatch {
            path: Some(path.into()),
            method: Some(method.into()),
            headers: header
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        },
        principals: Some(principals.iter().map(|account| principal(account)).collect()),
    }
}

/// Every kind of sidecar.
pub(crate) fn all() -> Vec<Sidecar> {
    let store = service("bookstore");
    let database = service("mysql");
    let pods = [database.pod("mysql-0"), database.pod("mysql-1")];
    let versions = [service("bookstore-v1"), service("bookstore-v2")];
    let split: Vec<_> = [(0, 90), (1, 10)]
        .map(|(index, weight)| share(&versions[index], 14001, weight))
        .into();
    let server_first = Protocol::TcpServerFirst;
    let mut sidecars = vec![
        Sidecar::new("http-client")
            .upstream(&store, 14001, &[1, 2])
            .http_to(&store, 80, Protocol::Http, &[share(&store, 14001, 100)]),
        Sidecar::new("http-client-without-endpoints")
            .upstream(&store, 14001, &[])
            .http_to(&store, 80, Protocol::Http, &[]),
        Sidecar::new("grpc-client").upstream(&store, 50051, &[1]).http_to(
            &store,
            50051,
            Protocol::Grpc,
            &[share(&store, 50051, 100)],
        ),
        Sidecar::new("tcp-client").upstream(&store, 9000, &[1]).to(
            &store,
            9000,
            &[cluster_ip(1)],
            Protocol::Tcp,
            Forward::Clusters(vec![share(&store, 9000, 100)]),
        ),
        Sidecar::new("split-client")
            .upstream(&versions[0], 14001, &[1])
            .upstream(&versions[1], 14001, &[2])
            .http_to(&store, 80, Protocol::Http, &split)
            .to(
                &store,
                9000,
                &[cluster_ip(1)],
                Protocol::Tcp,
                Forward::Clusters({
                    let mut shares = split.clone();
                    shares[1].weight = 0;
                    shares.push(share(&store, 14001, 5));
                    shares
                }),
            )
            .upstream(&store, 14001, &[3]),
        Sidecar::new("headless-client")
            .upstream(&pods[0], 3306, &[1])
            .upstream(&pods[1], 3306, &[2])
            .to(
                &pods[0],
                3306,
                &[ip(1)],
                server_first,
                Forward::Clusters(vec![share(&pods[0], 3306, 100)]),
            )
            .to(
                &pods[1],
                3306,
                &[ip(2), "fd00::2".parse().unwrap()],
                server_first,
                Forward::Clusters(vec![share(&pods[1], 3306, 100)]),
            ),
        Sidecar {
            outbound: Some(OutboundListener {
                passthrough: true,
                ..Default::default()
            }),
            ..Sidecar::new("egress")
        },
        Sidecar {
            outbound: Some(OutboundListener::default()),
            inbound: Some(InboundListener::default()),
            scraped: true,
            ..Sidecar::new("nothing")
        },
        Sidecar {
            outbound: Some(OutboundListener {
                ipv6: true,
                ..Default::default()
            }),
            inbound: Some(InboundListener {
                ipv6: true,
                ..Default::default()
            }),
            scraped: true,
            ipv6: true,
            ..Sidecar::new("two-families")
        },
        Sidecar::new("permissive-server")
            .serve(&store, 14001, Protocol::Http, None)
            .routes(&store, 14001, anyone())
            .serve(&store, 9000, Protocol::Tcp, None),
        Sidecar::new("http-server")
            .serve(
                &store,
                14001,
                Protocol::Http,
                Some(grant(&["bookbuyer", "bookthief"], &[])),
            )
            .routes(
                &store,
                14001,
                vec![
                    rule(
                        "/books-bought",
                        "GET",
                        Some(("user-agent", ".*-http-client/.*")),
                        &["bookbuyer"],
                    ),
                    rule(
                        "/buy/.*",
                        "POST",
                        Some((":authority", "bookstore.*")),
                        &["bookbuyer", "bookthief"],
                    ),
                    rule("/nobody", "GET", None, &[]),
                    rule("/projects/.*%2F.*", "GET", None, &["bookbuyer"]),
                ],
            ),
        Sidecar::new("denying-server")
            .serve(&store, 14001, Protocol::Http, Some(ConnectionAccess::default()))
            .routes(&store, 14001, vec![])
            .serve(&store, 9000, Protocol::Tcp, Some(ConnectionAccess::default())),
        Sidecar::new("tcp-server").serve(
            &database,
            3306,
            server_first,
            Some(grant(&["bookstore"], &[3306, 3307])),
        ),
    ];
    let mut everything = Sidecar::new("every-setting")
        .upstream(&store, 14001, &[1])
        .http_to(&store, 80, Protocol::Http, &[share(&store, 14001, 100)])
        .serve(&store, 14001, Protocol::Http, None)
        .routes(&store, 14001, anyone());
    everything.settings = Settings {
        tls: TlsParameters::default(),
        tracing: Some(Tracing {
            address: "127.0.0.1".into(),
            port: 9411,
            endpoint: "/api/v2/spans".into(),
        }),
        external_authorization: Some(ExternalAuthorization {
            address: "127.0.0.1".into(),
            port: 9191,
            stat_prefix: "opa".into(),
            timeout_ms: 1500,
            failure_mode_allow: false,
        }),
        active_health_checks: true,
    };
    sidecars.push(everything);
    sidecars
}
