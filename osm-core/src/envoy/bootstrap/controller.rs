//! The way to the controller: where it is, whom to believe, how often to try.

use std::collections::BTreeMap;

use osm_proto::envoy::{
    config::{
        cluster::v3::{
            Cluster, UpstreamConnectionOptions,
            cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily},
        },
        core::v3::{
            BackoffStrategy, Http2ProtocolOptions, KeepaliveSettings, RetryPolicy, TcpKeepalive,
            TransportSocket,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            transport_socket,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        },
    },
    extensions::{
        transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsParameters,
            UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use prost_types::Any;

use super::{
    Bootstrap,
    files::{self, CERTIFICATE_SECRET_NAME, VALIDATION_SECRET_NAME},
};
use crate::{
    api::{
        names::{self, CLUSTER_DOMAIN, CONTROLLER},
        ports,
    },
    envoy::parts::{any, milliseconds, seconds, tcp_address},
};

/// The key under which Envoy looks for a cluster's HTTP options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The gRPC stream to the controller, and how it is opened anew.
///
/// Envoy waits a random time between zero and a bound that doubles from `base_interval` to `max_interval`. Its
/// default maximum is 30 s: proxies then stay without a controller long after one is back.
pub(super) fn stream(cluster: &str) -> TargetSpecifier {
    let (base, max) = (milliseconds(300), seconds(4));
    #[cfg(feature = "sabotage")]
    let (base, max) = if crate::sabotage::Fault::SlowReconnect.is_on() {
        (seconds(20), seconds(20))
    } else {
        (base, max)
    };
    TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
        cluster_name: cluster.to_owned(),
        retry_policy: Some(RetryPolicy {
            retry_back_off: Some(BackoffStrategy {
                base_interval: Some(base),
                max_interval: Some(max),
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The controller's Service.
///
/// Logical DNS: a name that stops to resolve, or resolves to nothing, keeps the last address that worked.
pub(super) fn cluster(bootstrap: &Bootstrap<'_>) -> Cluster {
    let endpoint = Endpoint {
        address: Some(tcp_address(address(bootstrap.controller_namespace), ports::ADS)),
        ..Default::default()
    };
    // For a peer that is gone without a word while HTTP/2 has no stream to ping on: 10 + 3 * 5 s.
    let keepalive = Some(TcpKeepalive {
        keepalive_probes: Some(3),
        keepalive_time: Some(10),
        keepalive_interval: Some(5),
    });
    #[cfg(feature = "sabotage")]
    let keepalive = keepalive.filter(|_| !crate::sabotage::Fault::NoPings.is_on());
    Cluster {
        name: CONTROLLER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into())),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        connect_timeout: Some(seconds(3)),
        load_assignment: Some(only(CONTROLLER, endpoint)),
        typed_extension_protocol_options: http2(),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: keepalive,
            ..Default::default()
        }),
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&tls(bootstrap)))),
        }),
        ..Default::default()
    }
}

/// The name at which the controller's Service is found.
pub fn address(controller_namespace: &str) -> String {
    format!("{CONTROLLER}.{controller_namespace}.svc.{CLUSTER_DOMAIN}")
}

/// A cluster's one endpoint.
pub(super) fn only(cluster: &str, endpoint: Endpoint) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// HTTP/2 with pings: a controller that hangs, or a node that fell off the network, is noticed within 15 s.
pub(super) fn http2() -> BTreeMap<String, Any> {
    let pings = Some(KeepaliveSettings {
        interval: Some(seconds(10)),
        timeout: Some(seconds(5)),
        ..Default::default()
    });
    #[cfg(feature = "sabotage")]
    let pings = pings.filter(|_| !crate::sabotage::Fault::NoPings.is_on());
    let http2 = Http2ProtocolOptions {
        connection_keepalive: pings,
        // One response in flight is enough; Envoy's default reserves far more.
        initial_stream_window_size: Some(1 << 20),
        initial_connection_window_size: Some(1 << 20),
        ..Default::default()
    };
    let options = any(&HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
        })),
        ..Default::default()
    });
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), options)])
}

/// Both ends are ours, so TLS 1.3 only. The controller must be named `ads.<trust domain>`: any other certificate of
/// the mesh, though signed by the same root, is refused.
fn tls(bootstrap: &Bootstrap<'_>) -> UpstreamTlsContext {
    let server = names::ads_server(bootstrap.trust_domain);
    let expected = CertificateValidationContext {
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: SanType::Dns.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact(server.clone())),
                ignore_case: false,
            }),
            ..Default::default()
        }],
        ..Default::default()
    };
    UpstreamTlsContext {
        sni: server,
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
                ..Default::default()
            }),
            alpn_protocols: vec!["h2".to_owned()],
            tls_certificate_sds_secret_configs: vec![files::watched(
                bootstrap.directory,
                CERTIFICATE_SECRET_NAME,
                files::CERTIFICATE_SECRET,
            )],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(expected),
                    validation_context_sds_secret_config: Some(files::watched(
                        bootstrap.directory,
                        VALIDATION_SECRET_NAME,
                        files::VALIDATION_SECRET,
                    )),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    }
}
