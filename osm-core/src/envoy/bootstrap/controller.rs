//! The way to the controller: where it is, whom to believe, how often to try, when to leave.
//!
//! A controller that does not answer is left by three means. Its host is gone or cannot be reached: the sidecar's kernel
//! notices, which costs neither program anything. It stands still while its host answers: its kubelet ends it (the
//! chart's liveness probe). Its kubelet does not, or only some of its streams hang: pings on HTTP/2, rarely, because each
//! of them wakes the controller, and those of ten thousand sidecars each ten seconds took 4 % of a core.

use std::{collections::BTreeMap, time::Duration};

use osm_proto::envoy::{
    config::{
        cluster::v3::{
            Cluster, UpstreamConnectionOptions,
            cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily},
        },
        core::v3::{
            BackoffStrategy, BindConfig, Http2ProtocolOptions, KeepaliveSettings, RetryPolicy, SocketOption,
            TcpKeepalive, TransportSocket,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            socket_option, transport_socket,
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

/// How often a sidecar pings its controller on HTTP/2. Envoy adds up to 15 % at random.
pub const PING: Duration = Duration::from_secs(90);
/// How long it waits for the answer to a ping.
pub const PONG: Duration = Duration::from_secs(5);
/// How long the connection is quiet until the sidecar's kernel asks the other one whether it is there. In whole seconds, as
/// all that TCP keepalive is told.
pub const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
/// How long after one such question comes the next.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Questions without an answer after which the connection is over. Linux does not count them where [`USER_TIMEOUT`] is
/// set: then it is over at the first moment to ask that is later than that. Both make it 16 s of silence.
pub const KEEPALIVE_PROBES: u32 = 3;
/// How long data may stay without acknowledgement until the connection is over (TCP_USER_TIMEOUT, in whole milliseconds).
/// Without it, a network that breaks while something is on its way is waited for for a quarter of an hour: TCP keepalive asks
/// on quiet connections only. It also ends connections on which the controller reads nothing for as long, once what its
/// kernel takes in is full.
pub const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// `IPPROTO_TCP` of Linux.
const TCP: i64 = 6;
/// `TCP_USER_TIMEOUT` of Linux.
const TCP_USER_TIMEOUT: i64 = 18;

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
    let keepalive = Some(TcpKeepalive {
        keepalive_probes: Some(KEEPALIVE_PROBES),
        keepalive_time: u32::try_from(KEEPALIVE_TIME.as_secs()).ok(),
        keepalive_interval: u32::try_from(KEEPALIVE_INTERVAL.as_secs()).ok(),
    });
    #[cfg(feature = "sabotage")]
    let keepalive = keepalive.filter(|_| !crate::sabotage::Fault::NoPings.is_on());
    let timeout = Some(user_timeout());
    #[cfg(feature = "sabotage")]
    let timeout = timeout.filter(|_| !crate::sabotage::Fault::NoPings.is_on());
    Cluster {
        name: CONTROLLER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into())),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        connect_timeout: Some(seconds(3)),
        load_assignment: Some(only(CONTROLLER, endpoint)),
        typed_extension_protocol_options: http2(PING),
        upstream_bind_config: timeout,
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

/// Sets [`USER_TIMEOUT`], for which Envoy has no field. There is no address in it, so that nothing is bound.
fn user_timeout() -> BindConfig {
    let milliseconds = i64::try_from(USER_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    BindConfig {
        socket_options: vec![SocketOption {
            description: "TCP_USER_TIMEOUT".to_owned(),
            level: TCP,
            name: TCP_USER_TIMEOUT,
            state: socket_option::SocketState::StatePrebind.into(),
            value: Some(socket_option::Value::IntValue(milliseconds)),
            ..Default::default()
        }],
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

/// HTTP/2 with a ping each `interval`, which must be answered within [`PONG`].
pub(super) fn http2(interval: Duration) -> BTreeMap<String, Any> {
    let pings = Some(KeepaliveSettings {
        interval: prost_types::Duration::try_from(interval).ok(),
        timeout: prost_types::Duration::try_from(PONG).ok(),
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
