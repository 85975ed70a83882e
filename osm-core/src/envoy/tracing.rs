//! Spans of the requests that pass, in Zipkin's format.

use osm_proto::envoy::{
    config::trace::v3::{
        ZipkinConfig,
        tracing::{Http, http::ConfigType},
        zipkin_config::CollectorEndpointVersion,
    },
    extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing,
};

use super::parts::any;
use crate::{api::names::TRACING_CLUSTER, ir};

/// Sends spans of all sampled requests to the mesh's collector.
pub(super) fn tracing(collector: &ir::Tracing) -> Tracing {
    let zipkin = ZipkinConfig {
        collector_cluster: TRACING_CLUSTER.to_owned(),
        collector_endpoint: collector.endpoint.clone(),
        collector_endpoint_version: CollectorEndpointVersion::HttpJson.into(),
        ..Default::default()
    };
    let provider = Http {
        name: "envoy.tracers.zipkin".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&zipkin))),
    };
    Tracing {
        provider: Some(provider),
        verbose: true,
        ..Default::default()
    }
}
