//! Clusters that are not services of the mesh: the outside, Envoy's own admin endpoint, tracing, authorization.

use osm_proto::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbPolicy},
        },
        core::v3::Http2ProtocolOptions,
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
        },
    },
};

use super::{http_options, no_limits};
use crate::{
    api::{
        names::{EXTERNAL_AUTHORIZATION_CLUSTER, METRICS_CLUSTER, PASSTHROUGH_CLUSTER, TRACING_CLUSTER},
        ports::ENVOY_ADMIN,
    },
    envoy::{
        endpoint::assignment,
        parts::{LOOPBACK, tcp_address},
    },
    ir::{self, ExternalAuthorization, Tracing},
};

/// The outside of the mesh: each connection goes to the address it was made to.
pub fn passthrough_cluster() -> Cluster {
    Cluster {
        name: PASSTHROUGH_CLUSTER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        circuit_breakers: Some(no_limits()),
        ..Default::default()
    }
}

/// Envoy's own admin endpoint, for the Prometheus listener.
pub fn metrics_cluster() -> Cluster {
    let admin = ir::Endpoint {
        address: LOOPBACK,
        port: ENVOY_ADMIN,
    };
    Cluster {
        name: METRICS_CLUSTER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(assignment(METRICS_CLUSTER.to_owned(), &[admin])),
        ..Default::default()
    }
}

/// The tracing collector.
pub fn tracing_cluster(tracing: &Tracing) -> Cluster {
    named_host(TRACING_CLUSTER, &tracing.address, tracing.port)
}

/// The external authorization server: gRPC, hence HTTP/2.
pub fn external_authorization_cluster(server: &ExternalAuthorization) -> Cluster {
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                Http2ProtocolOptions::default(),
            )),
        })),
        ..Default::default()
    };
    Cluster {
        typed_extension_protocol_options: http_options(&options),
        ..named_host(EXTERNAL_AUTHORIZATION_CLUSTER, &server.address, server.port)
    }
}

/// One host known by name, looked up in the background.
fn named_host(name: &str, host: &str, port: u16) -> Cluster {
    let endpoint = Endpoint {
        address: Some(tcp_address(host, port)),
        ..Default::default()
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into())),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}
