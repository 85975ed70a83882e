//! TCP proxying: connections to one cluster or split over several, and the chain that closes everything.

use osm_proto::envoy::{
    config::listener::v3::{Filter, FilterChain, filter::ConfigType},
    extensions::filters::network::{
        direct_response::v3 as direct_response,
        tcp_proxy::v3::{
            TcpProxy,
            tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
        },
    },
};

use super::{access_log::access_log, parts::any};
use crate::ir;

/// Forwards connections to the clusters; closes them when no cluster has a share.
///
/// `attempts` is how often a connection is tried, each time on the load balancer's next endpoint.
pub(super) fn proxy(stat_prefix: &str, clusters: &[ir::WeightedCluster], attempts: u32) -> Filter {
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
        max_connect_attempts: Some(attempts),
        access_log: vec![access_log()],
        ..Default::default()
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
