//! The filter that puts inbound requests to an external authorization server.

use osm_proto::envoy::{
    config::core::v3::{
        ApiVersion, GrpcService,
        grpc_service::{EnvoyGrpc, TargetSpecifier},
    },
    extensions::filters::http::ext_authz::v3::{BufferSettings, ExtAuthz, ext_authz::Services},
};

use super::parts::milliseconds;
use crate::{api::names::EXTERNAL_AUTHORIZATION_CLUSTER, ir::ExternalAuthorization};

/// How much of a request's body the server is shown, in bytes.
const MAX_BODY: u32 = 8192;

/// The filter's configuration.
///
/// Over Envoy's own gRPC client and a cluster, not over the Google client as in the original: it is the one that all
/// builds of Envoy have, and its connections show in the cluster's statistics.
pub(super) fn external_authorization(server: &ExternalAuthorization) -> ExtAuthz {
    let target = EnvoyGrpc {
        cluster_name: EXTERNAL_AUTHORIZATION_CLUSTER.to_owned(),
        ..Default::default()
    };
    let service = GrpcService {
        timeout: Some(milliseconds(server.timeout_ms)),
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)),
        ..Default::default()
    };
    ExtAuthz {
        services: Some(Services::GrpcService(service)),
        transport_api_version: ApiVersion::V3.into(),
        failure_mode_allow: server.failure_mode_allow,
        with_request_body: Some(BufferSettings {
            max_request_bytes: MAX_BODY,
            allow_partial_message: true,
            ..Default::default()
        }),
        stat_prefix: server.stat_prefix.clone(),
        ..Default::default()
    }
}
