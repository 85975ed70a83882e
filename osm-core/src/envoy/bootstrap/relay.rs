//! The way to the relay beside Envoy, where the sidecar's last good configuration is kept.
//!
//! A socket in a folder that only the two of them see: no TLS, and nothing to look up.

use std::time::Duration;

use osm_proto::envoy::config::{
    cluster::v3::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType},
    },
    core::v3::{Address, Pipe, address},
    endpoint::v3::Endpoint,
};

use super::{
    controller::{http2, only},
    files::RELAY_SOCKET,
};
use crate::{api::names::RELAY, envoy::parts::seconds};

/// How often Envoy pings the relay: there is no network between the two that a kernel could find silent, and no controller
/// is woken by it.
const PING: Duration = Duration::from_secs(10);

pub(super) fn cluster(folder: &str) -> Cluster {
    let pipe = Pipe {
        path: format!("{folder}/{RELAY_SOCKET}"),
        ..Default::default()
    };
    let endpoint = Endpoint {
        address: Some(Address {
            address: Some(address::Address::Pipe(pipe)),
        }),
        ..Default::default()
    };
    Cluster {
        name: RELAY.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(seconds(1)),
        load_assignment: Some(only(RELAY, endpoint)),
        typed_extension_protocol_options: http2(PING),
        ..Default::default()
    }
}
