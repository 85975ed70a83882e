//! A service of the mesh, as its clients see it, and how they live with the death of its pods.
//!
//! A control plane that is gone takes no dead endpoint away, so each proxy does it by itself: connections are tried
//! briefly, requests and connections that could not be made go elsewhere ([`super::super::retry`]), an endpoint that
//! cannot be reached is ejected, and connections to silent peers are found and closed.

use osm_proto::envoy::{
    config::{
        cluster::v3::{
            Cluster, OutlierDetection, UpstreamConnectionOptions,
            cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
        },
        core::v3::{
            HealthCheck, Http2ProtocolOptions, KeepaliveSettings, TcpKeepalive,
            health_check::{HealthChecker, TcpHealthCheck},
        },
    },
    r#type::v3::Percent,
};

use super::{no_limits, same_protocol};
use crate::{
    envoy::{
        parts::{ads, seconds},
        tls,
    },
    ir::{Settings, UpstreamCluster},
};

/// The CDS resource of a service port.
pub fn upstream_cluster(upstream: &UpstreamCluster, settings: &Settings) -> Cluster {
    let name = upstream.key.to_string();
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            ..Default::default()
        }),
        lb_policy: LbPolicy::RoundRobin.into(),
        transport_socket: Some(tls::upstream(&name, upstream, &settings.tls)),
        // A pod answers within milliseconds or not at all; the time lost on one that is gone (its node failed, say)
        // is time the request waits for its next attempt. The TLS handshake is included.
        connect_timeout: Some(seconds(1)),
        circuit_breakers: Some(no_limits()),
        outlier_detection: Some(outlier_detection()),
        common_lb_config: Some(CommonLbConfig {
            // Never fall back to ejected endpoints: at least one is always left (see `outlier_detection`).
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        }),
        health_checks: settings
            .active_health_checks
            .then(health_check)
            .into_iter()
            .collect(),
        // An endpoint that the control plane took away is gone, however healthy it looks.
        ignore_health_on_host_removal: true,
        upstream_connection_options: Some(UpstreamConnectionOptions {
            // A peer that vanished is noticed on an idle connection after 30 s, not after the kernel's two hours.
            tcp_keepalive: Some(TcpKeepalive {
                keepalive_time: Some(15),
                keepalive_interval: Some(5),
                keepalive_probes: Some(3),
            }),
            ..Default::default()
        }),
        // Idle connections are closed by the client, long before the server's hour is over: then no request meets a
        // connection that is just being closed.
        typed_extension_protocol_options: same_protocol(http2(), seconds(300)),
        name,
        ..Default::default()
    }
}

/// Ejects endpoints that cannot be reached, and only those.
///
/// What an application answers is never a reason, not even 503: applications say that for one path, one tenant or one
/// moment, and taking all of a pod's traffic away would make it worse. Hence "local origin" failures only (connect
/// failures, timeouts and resets as this proxy sees them), told apart from answers by `split_external_local_origin_errors`.
fn outlier_detection() -> OutlierDetection {
    OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: Some(3),
        enforcing_consecutive_local_origin_failure: Some(100),
        enforcing_consecutive_5xx: Some(0),
        enforcing_consecutive_gateway_failure: Some(0),
        enforcing_success_rate: Some(0),
        enforcing_local_origin_success_rate: Some(0),
        // 5 s at first, 5 s more each time, a minute at most: an endpoint that is back is used again soon.
        interval: Some(seconds(5)),
        base_ejection_time: Some(seconds(5)),
        max_ejection_time: Some(seconds(60)),
        // All may be ejected but the last: a service never becomes unreachable by ejection alone.
        max_ejection_percent: Some(99),
        ..Default::default()
    }
}

/// A connection and a TLS handshake every ten seconds. The original asked for a page over HTTP, which fails for
/// services that speak something else.
fn health_check() -> HealthCheck {
    HealthCheck {
        timeout: Some(seconds(1)),
        interval: Some(seconds(10)),
        healthy_threshold: Some(1),
        unhealthy_threshold: Some(3),
        health_checker: Some(HealthChecker::TcpHealthCheck(TcpHealthCheck::default())),
        ..Default::default()
    }
}

/// Pings tell a silent HTTP/2 peer from a slow one, also while requests wait on the connection.
fn http2() -> Http2ProtocolOptions {
    let keepalive = KeepaliveSettings {
        interval: Some(seconds(10)),
        timeout: Some(seconds(5)),
        ..Default::default()
    };
    Http2ProtocolOptions {
        connection_keepalive: Some(keepalive),
        ..Default::default()
    }
}
