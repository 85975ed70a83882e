//! What a proxy must do, in the mesh's terms.
//!
//! The seam between policy and Envoy: `policy` and `mesh` write these types, `envoy` turns each into exactly one
//! resource, and a second front end (Gateway API) or back end would meet here. Invariant: plain, comparable data with
//! every list in a fixed order; no Envoy type, no Kubernetes type, nothing that differs between replicas.

mod service;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::identity::TrustDomain;

pub use service::{ClusterKey, Protocol, ServiceKey, TargetPort};

/// TLS parameters of all mesh traffic (MeshConfig `sidecar.tls*`, `cipherSuites`, `ecdhCurves`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsParameters {
    /// Lowest version; Envoy's number of it: 0 auto, 1 TLSv1_0 to 4 TLSv1_3.
    pub minimum: i32,
    /// Highest version, numbered likewise.
    pub maximum: i32,
    /// TLS 1.2 cipher suites; Envoy's choice when empty.
    pub cipher_suites: Vec<String>,
    /// ECDH curves; Envoy's choice when empty.
    pub ecdh_curves: Vec<String>,
}

/// Where a sidecar sends its spans.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tracing {
    /// The collector's host.
    pub address: String,
    /// The collector's port.
    pub port: u16,
    /// The collector's path.
    pub endpoint: String,
}

/// The external authorization server that inbound requests are put to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalAuthorization {
    /// Its host.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Prefix of Envoy's statistics.
    pub stat_prefix: String,
    /// What it may take, in milliseconds.
    pub timeout_ms: u64,
    /// Whether requests pass when it fails.
    pub failure_mode_allow: bool,
}

/// The settings of the mesh that resources depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    /// TLS parameters.
    pub tls: TlsParameters,
    /// Tracing, if on.
    pub tracing: Option<Tracing>,
    /// External authorization, if on.
    pub external_authorization: Option<ExternalAuthorization>,
    /// Whether sidecars check each other actively.
    pub active_health_checks: bool,
}

/// A service port of the mesh as others call it: CDS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamCluster {
    /// Its key; names the cluster.
    pub key: ClusterKey,
    /// The DNS names of which a server's certificate must have one, ordered; nobody's is accepted when empty.
    pub servers: Vec<String>,
}

/// The addresses behind an [`UpstreamCluster`]: EDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEndpoints {
    /// The cluster's key.
    pub key: ClusterKey,
    /// Its endpoints, ordered and without duplicates.
    pub endpoints: Vec<Endpoint>,
}

/// One address of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// The port the pod listens on.
    pub port: u16,
}

/// A cluster of the proxy's own application: CDS, with its one endpoint inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalCluster {
    /// `<upstream cluster name>|local`.
    pub name: String,
    /// The port the application listens on, at 127.0.0.1 (with `PodIP` the redirection rewrites the address).
    pub port: u16,
}

/// A cluster and its share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightedCluster {
    /// The cluster's name.
    pub cluster: String,
    /// Its weight; the share is weight over the sum. Zero is allowed where the sum is not zero.
    pub weight: u32,
}

/// The outbound listener: LDS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboundListener {
    /// One chain for each service port, ordered by name; no two match the same connection.
    pub chains: Vec<OutboundChain>,
    /// Whether other traffic passes through to its original destination; else it is closed.
    pub passthrough: bool,
    /// Whether the pod has an IPv6 address.
    pub ipv6: bool,
}

/// How connections to one service port are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundChain {
    /// `outbound_<ns/svc>_<port>_<protocol>`.
    pub name: String,
    /// The port clients connect to.
    pub port: u16,
    /// The addresses clients connect to (the cluster IPs, or the pods of a headless service), ordered; never empty.
    pub addresses: Vec<IpAddr>,
    /// The service port's protocol; decides whether Envoy may wait for the client's first bytes.
    pub protocol: Protocol,
    /// Where connections go.
    pub forward: Forward,
}

/// Where a filter chain sends what it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// HTTP, by the route configuration of this name.
    Routes(String),
    /// TCP, to these clusters (never empty), ordered by cluster name.
    Clusters(Vec<WeightedCluster>),
}

/// The routes to one service port: RDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundRoutes {
    /// Name of the route configuration.
    pub name: String,
    /// `outbound_virtual-host|<fqdn>`.
    pub virtual_host: String,
    /// The hosts clients may name, ordered, without duplicates.
    pub domains: Vec<String>,
    /// Where requests go, ordered by cluster name; requests fail (404) when empty.
    pub clusters: Vec<WeightedCluster>,
}

/// The inbound listener: LDS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboundListener {
    /// The trust domain that peers must be workloads of.
    pub trust_domain: TrustDomain,
    /// One chain for each of the proxy's service ports, ordered by name; no two match the same connection.
    pub chains: Vec<InboundChain>,
    /// Whether the pod has an IPv6 address.
    pub ipv6: bool,
}

/// How connections to one of the proxy's own service ports are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundChain {
    /// `inbound_<ns/svc>_<target port>_<protocol>`.
    pub name: String,
    /// The port the application listens on.
    pub port: u16,
    /// The server name clients ask for: the service's fully qualified name.
    pub server_name: String,
    /// Where connections go.
    pub forward: Forward,
    /// Whether a rule looks at the path of requests: it must then mean one thing only.
    pub judges_paths: bool,
    /// Who may connect; `None` (permissive mode) is every workload of the mesh.
    pub access: Option<ConnectionAccess>,
}

/// Who may connect to a chain (network RBAC). Without any grant nobody may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionAccess {
    /// The grants by their policy's name, `<namespace>/<TrafficTarget>`.
    pub grants: BTreeMap<String, ConnectionGrant>,
}

/// One policy's grant of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionGrant {
    /// The principals that may connect, ordered.
    pub principals: Vec<String>,
    /// The destination ports they may connect to, ordered; any when empty.
    pub ports: Vec<u16>,
}

/// The routes into the proxy's application on one port: RDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRoutes {
    /// `rds-inbound.<target port>`.
    pub name: String,
    /// One for each service on the port, ordered by name; their domains do not overlap.
    pub virtual_hosts: Vec<InboundVirtualHost>,
}

/// One service's requests on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundVirtualHost {
    /// `inbound_virtual-host|<fqdn>`.
    pub name: String,
    /// The hosts clients may name, ordered, without duplicates.
    pub domains: Vec<String>,
    /// The routes, in matching order; requests that match none get 404.
    pub routes: Vec<InboundRoute>,
    /// The proxy's own cluster behind them.
    pub cluster: String,
}

/// Requests of one shape, and who may send them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRoute {
    /// What the requests look like.
    pub request: HttpMatch,
    /// The principals that may send them, ordered; `None` is every workload of the mesh.
    pub principals: Option<Vec<String>>,
}

/// The shape of a request. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpMatch {
    /// Regular expression (RE2) of the whole path without the query; any path when absent.
    ///
    /// It matches paths with an escaped slash or backslash (`%2F`, `%5C`) only if it speaks of such itself
    /// ([`has_escaped_slash`](crate::facts::pattern::has_escaped_slash)).
    pub path: Option<Arc<str>>,
    /// The method; any when absent.
    pub method: Option<Arc<str>>,
    /// Headers and the regular expressions (RE2) of their whole values; `host` has become `:authority`.
    pub headers: BTreeMap<Arc<str>, Arc<str>>,
}

/// The roots that a peer's certificate must chain to: SDS.
///
/// The names it must have, besides, are in the filter chain or the cluster that uses this. Workload certificates carry
/// DNS names in the trust domain, xDS client certificates carry none: this is what keeps a proxy's xDS certificate from
/// passing for a workload's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationContext {
    /// Name of the secret.
    pub name: String,
    /// The trusted roots, PEM.
    pub roots: Arc<str>,
}

/// A proxy's own certificate: SDS. Differs between replicas, unlike all else.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceCertificate {
    /// The leaf and any intermediates, PEM.
    pub chain: Arc<str>,
    /// The private key, PEM.
    pub key: Arc<str>,
}

impl std::fmt::Debug for ServiceCertificate {
    /// Shows nothing of the key (law 11).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceCertificate(..)")
    }
}
