//! The pod's own application.

use osm_proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType},
};

use super::{no_limits, same_protocol};
use crate::{
    envoy::{
        endpoint::assignment,
        parts::{LOOPBACK, seconds},
    },
    ir::{Endpoint, LocalCluster},
};

/// The CDS resource of one of the application's ports.
///
/// A fixed address, where the original asked DNS for `127.0.0.1`. `alt_stat_name` keeps the name in statistics the
/// way it always was.
///
/// Idle connections are closed after a second, before the application does so: one that an application closes in the
/// very moment a request is written to it costs that request, and common HTTP servers wait as little as two seconds.
/// Connecting anew on the loopback is cheap.
pub fn local_cluster(local: &LocalCluster) -> Cluster {
    let application = Endpoint {
        address: LOOPBACK,
        port: local.port,
    };
    Cluster {
        name: local.name.clone(),
        alt_stat_name: local.name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(assignment(local.name.clone(), &[application])),
        connect_timeout: Some(seconds(1)),
        circuit_breakers: Some(no_limits()),
        typed_extension_protocol_options: same_protocol(Default::default(), seconds(1)),
        ..Default::default()
    }
}
