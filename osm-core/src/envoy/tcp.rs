//! TCP proxying: connections to one cluster or split over several, and the chain that closes everything.

use osm_proto::envoy::{
    config::listener::v3::{Filter, FilterChain, filter::ConfigType},
    extensions::filters::network::{
        direct_response::v3 as direct_response,
        tcp_proxy::v3::{
            TcpProxy, UpstreamConnectMode,
            tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
        },
    },
};

use super::{access_log::access_log, parts::any, retry::RETRIES};
use crate::{api::names::PASSTHROUGH_CLUSTER, ir};

/// Forwards connections that the pod's application makes, each tried on several endpoints.
pub(super) fn outbound(stat_prefix: &str, clusters: &[ir::WeightedCluster]) -> Filter {
    proxy(
        stat_prefix,
        clusters,
        TcpProxy {
            max_connect_attempts: Some(1 + RETRIES),
            ..Default::default()
        },
    )
}

/// Forwards connections to the outside, to where they were going.
pub(super) fn passthrough() -> Filter {
    let cluster = ir::WeightedCluster {
        cluster: PASSTHROUGH_CLUSTER.to_owned(),
        weight: 1,
    };
    proxy(
        &format!("egress-tcp-proxy.{PASSTHROUGH_CLUSTER}"),
        &[cluster],
        TcpProxy::default(),
    )
}

/// Forwards connections to the pod's application, once the client's certificate has been seen.
///
/// Envoy would otherwise connect to the application while the TLS handshake is still going on, and so let anyone
/// reach it, if only for a moment.
pub(super) fn inbound(stat_prefix: &str, clusters: &[ir::WeightedCluster]) -> Filter {
    let mode = UpstreamConnectMode::OnDownstreamTlsHandshake;
    let options = TcpProxy {
        upstream_connect_mode: mode.into(),
        max_early_data_bytes: Some(0),
        ..Default::default()
    };
    proxy(stat_prefix, clusters, options)
}

/// Closes connections when no cluster has a share.
fn proxy(stat_prefix: &str, clusters: &[ir::WeightedCluster], options: TcpProxy) -> Filter {
    // Envoy rejects a weight of zero here, unlike in routes.
    let shares: Vec<_> = super::route::within_bounds(clusters)
        .filter(|share| share.weight > 0)
        .collect();
    let specifier = match &shares[..] {
        [] => return close(),
        [only] => ClusterSpecifier::Cluster(only.cluster.clone()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|share| ClusterWeight {
                    name: share.cluster.clone(),
                    weight: share.weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        access_log: vec![access_log()],
        ..options
    };
    Filter {
        name: "tcp_proxy".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&proxy))),
    }
}

/// Closes connections at once.
fn close() -> Filter {
    Filter {
        name: "envoy.filters.network.direct_response".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&direct_response::Config::default()))),
    }
}

/// The default chain of a listener that has no other chain.
///
/// Envoy rejects a listener without chains. To leave the listener out instead would have Envoy close its socket when
/// the last chain goes, and the kernel refuse redirected connections with an error that points nowhere.
pub(super) fn closed_chain() -> FilterChain {
    FilterChain {
        name: "closed".to_owned(),
        filters: vec![close()],
        ..Default::default()
    }
}
