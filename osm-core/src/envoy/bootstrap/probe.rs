//! Listeners for the kubelet, which has no certificate of the mesh and yet must ask the application how it is.
//!
//! Invariant: what these listeners let in without mutual TLS is a GET of the exact path of one probe, nothing more.

use std::{collections::BTreeMap, net::IpAddr};

use osm_proto::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{HttpProtocolOptions as CommonHttpOptions, TransportSocket, transport_socket},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        },
        listener::v3::{FilterChain, Listener},
        route::v3::{
            HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
            header_matcher::HeaderMatchSpecifier, route::Action, route_action::ClusterSpecifier,
            route_match::PathSpecifier,
        },
    },
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
        transport_sockets::tls::v3::UpstreamTlsContext,
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::{Probe, ProbeKind};
use crate::{
    api::ports,
    envoy::{
        http,
        parts::{LOOPBACK, any, ip_address, seconds},
    },
};

/// Where a sidecar tells whether it has its configuration (port of [`ProbeKind::Readiness`]): 200 once its first
/// listeners and clusters arrived, 503 while it drains.
pub const READY_PATH: &str = "/osm-readiness-probe/envoy";

/// The headers a rewritten probe carries so that it can be told what it was; none of the application's business.
pub const ORIGINAL_HEADERS: [&str; 3] = ["Original-Http-Port", "Original-Http-Path", "Original-Http-Scheme"];

/// Envoy's own admin endpoint, of which only `/ready` is let out.
const ADMIN_CLUSTER: &str = "osm-proxy-admin";

/// The listeners of the kinds that have probes; the one for readiness is always there, for the sidecar's own.
pub(super) fn listeners(probes: &[Probe], bind: IpAddr) -> Vec<Listener> {
    ProbeKind::ALL
        .into_iter()
        .filter_map(|kind| listener(kind, probes, bind))
        .collect()
}

fn listener(kind: ProbeKind, probes: &[Probe], bind: IpAddr) -> Option<Listener> {
    let own = (kind == ProbeKind::Readiness).then(|| route(READY_PATH, "/ready", ADMIN_CLUSTER, seconds(1)));
    let routes: Vec<Route> = probes
        .iter()
        .filter(|probe| probe.kind == kind)
        .map(|probe| {
            let timeout = prost_types::Duration::try_from(probe.timeout).unwrap_or_else(|_| seconds(1));
            route(&probe.public_path(), &probe.path, &cluster_name(probe), timeout)
        })
        .chain(own)
        .collect();
    if routes.is_empty() {
        return None;
    }
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "local_route".to_owned(),
            virtual_hosts: vec![VirtualHost {
                name: "local_service".to_owned(),
                domains: vec!["*".to_owned()],
                routes,
                ..Default::default()
            }],
            ..Default::default()
        })),
        generate_request_id: Some(false),
        request_headers_timeout: Some(seconds(5)),
        ..http::plain("health_probes_http".to_owned(), vec![http::router()])
    };
    Some(Listener {
        name: format!("{}_listener", kind.name()),
        address: Some(bound(bind, kind.port())),
        filter_chains: vec![FilterChain {
            filters: vec![http::filter(&manager)],
            ..Default::default()
        }],
        // A pod that is out of connections must still be able to say that it lives.
        ignore_global_conn_limit: true,
        ..Default::default()
    })
}

/// An exact path, and no header added that the application would not have seen from the kubelet.
///
/// The `Location` of a redirect is removed: the kubelet would follow it to this port, where nothing else is served.
/// Without one it takes the redirect for what it also is to it, a success.
fn route(public_path: &str, path: &str, cluster: &str, timeout: prost_types::Duration) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Path(public_path.to_owned())),
            headers: vec![HeaderMatcher {
                name: ":method".to_owned(),
                header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
                    match_pattern: Some(MatchPattern::Exact("GET".to_owned())),
                    ignore_case: false,
                })),
                ..Default::default()
            }],
            ..Default::default()
        }),
        request_headers_to_remove: ORIGINAL_HEADERS.map(str::to_owned).into(),
        response_headers_to_remove: vec!["location".to_owned()],
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            prefix_rewrite: path.to_owned(),
            idle_timeout: Some(timeout),
            timeout: Some(timeout),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// The application's port, as the kubelet would ask it: a new connection for each probe.
pub(super) fn cluster(probe: &Probe) -> Cluster {
    let timeout = prost_types::Duration::try_from(probe.timeout).unwrap_or_else(|_| seconds(1));
    let tls = probe.tls.then(|| TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(
            &UpstreamTlsContext::default(),
        ))),
    });
    Cluster {
        connect_timeout: Some(timeout),
        transport_socket: tls,
        ..local_cluster(&cluster_name(probe), probe.port)
    }
}

/// Envoy's admin endpoint.
pub(super) fn admin_cluster() -> Cluster {
    local_cluster(ADMIN_CLUSTER, ports::ENVOY_ADMIN)
}

fn local_cluster(name: &str, port: u16) -> Cluster {
    let endpoint = Endpoint {
        address: Some(ip_address(LOOPBACK, port)),
        ..Default::default()
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttpOptions {
            max_requests_per_connection: Some(1),
            ..Default::default()
        }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Default::default())),
        })),
        ..Default::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(seconds(1)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        typed_extension_protocol_options: BTreeMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            any(&options),
        )]),
        ..Default::default()
    }
}

fn cluster_name(probe: &Probe) -> String {
    format!("{}_{}_cluster", probe.container, probe.kind.name())
}

/// `::` also takes IPv4 connections.
fn bound(address: IpAddr, port: u16) -> osm_proto::envoy::config::core::v3::Address {
    use osm_proto::envoy::config::core::v3::address::Address;
    let mut bound = ip_address(address, port);
    if let Some(Address::SocketAddress(socket)) = &mut bound.address {
        socket.ipv4_compat = address.is_ipv6();
    }
    bound
}
