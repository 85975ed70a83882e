//! Clusters: the mesh's services, the pod's own application, and the mesh's helpers.

mod infrastructure;
mod local;
mod upstream;

use std::collections::BTreeMap;

use osm_proto::envoy::{
    config::{
        cluster::v3::{CircuitBreakers, circuit_breakers::Thresholds},
        core::v3::{self as core, Http2ProtocolOptions},
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig},
    },
};
use prost_types::{Any, Duration};

pub use infrastructure::{
    external_authorization_cluster, metrics_cluster, passthrough_cluster, tracing_cluster,
};
pub use local::local_cluster;
pub use upstream::upstream_cluster;

use super::parts::any;

/// What a cluster's HTTP protocol options are listed under.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Speaks the protocol that the client spoke, and closes connections that were idle so long.
fn same_protocol(http2: Http2ProtocolOptions, idle_timeout: Duration) -> BTreeMap<String, Any> {
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(idle_timeout),
            ..Default::default()
        }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            UseDownstreamHttpConfig {
                http2_protocol_options: Some(http2),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    http_options(&options)
}

fn http_options(options: &HttpProtocolOptions) -> BTreeMap<String, Any> {
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), any(options))])
}

/// No limits, but gauges of what is in use: Envoy's own default of 1024 turns a busy service into 503s.
fn no_limits() -> CircuitBreakers {
    let thresholds = Thresholds {
        max_connections: Some(u32::MAX),
        max_pending_requests: Some(u32::MAX),
        max_requests: Some(u32::MAX),
        max_retries: Some(u32::MAX),
        track_remaining: true,
        ..Default::default()
    };
    CircuitBreakers {
        thresholds: vec![thresholds],
        ..Default::default()
    }
}
