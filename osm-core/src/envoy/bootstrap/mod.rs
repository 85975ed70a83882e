//! The file a sidecar starts with: who it is, where the controller is, and how it is probed.
//!
//! Everything else reaches the sidecar over ADS. Must hold nothing that may change during the life of a pod, because
//! Envoy reads it once; what does change, the certificates, is in files beside it that Envoy watches. Invariants: the
//! control plane is believed only as `ads.<trust domain>` under the mesh's root; equal input gives equal bytes.

mod controller;
mod files;
mod probe;
mod relay;
mod template;

use std::{net::IpAddr, time::Duration};

use osm_proto::envoy::{
    config::{
        bootstrap::v3::{
            Admin, Bootstrap as Message,
            bootstrap::{DeferredStatOptions, DynamicResources, StaticResources},
        },
        core::v3::{ApiConfigSource, ApiVersion, GrpcService, api_config_source::ApiType},
        metrics::v3::{StatsConfig, StatsMatcher, stats_matcher},
        overload::v3::{OverloadManager, ResourceMonitor, resource_monitor},
    },
    extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig,
    r#type::matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern},
};
use uuid::Uuid;

pub use controller::{
    KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME, PING, PONG, USER_TIMEOUT, address,
};
pub use files::{
    BOOTSTRAP, CERTIFICATE, CERTIFICATE_SECRET, DIRECTORY, KEY, RELAY_DIRECTORY, RELAY_SOCKET, ROOT,
    VALIDATION_SECRET, certificate_secret, validation_secret,
};
pub use probe::{ORIGINAL_HEADERS, READY_PATH};
pub use template::Templates;

use super::parts::{LOOPBACK, ads, any, ip_address, seconds};
use crate::{api::ports, identity::TrustDomain};

/// Most connections a sidecar accepts at once, probes and its admin endpoint not counted. Each costs some tens of
/// kilobytes; without a limit a flood of them ends in the kernel killing the sidecar, and all connections with it.
const MAX_CONNECTIONS: i64 = 50_000;

/// What the bootstrap configuration of one pod is made from.
#[derive(Debug, Clone)]
pub struct Bootstrap<'a> {
    /// The proxy's uuid, which becomes `node.id`.
    pub uuid: Uuid,
    /// The mesh's trust domain, for the name the controller's certificate must have.
    pub trust_domain: &'a TrustDomain,
    /// The namespace of the `osm-controller` Service.
    pub controller_namespace: &'a str,
    /// The rewritten probes that Envoy answers; in the order of the pod's containers.
    pub probes: &'a [Probe],
    /// The address the probe listeners bind: `0.0.0.0`, or `::` in clusters whose pods have IPv6 addresses (Envoy
    /// then accepts IPv4 there, too).
    pub bind: IpAddr,
    /// The folder of the pod's bootstrap Secret in the Envoy container: [`DIRECTORY`] in a pod.
    pub directory: &'a str,
    /// The folder of the relay's socket, [`RELAY_DIRECTORY`] in a pod; `None` if Envoy speaks to the controller itself.
    pub relay: Option<&'a str>,
}

/// One HTTP or HTTPS probe of an application's container, as Envoy passes it on.
///
/// Envoy serves it without TLS at the port of its [`ProbeKind`], under [`Probe::public_path`]; the application sees
/// the original path, from loopback.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Which probe of the container.
    pub kind: ProbeKind,
    /// The container's name, a DNS label.
    pub container: String,
    /// The application's port.
    pub port: u16,
    /// The original path with its query: starts with `/`, no control characters.
    pub path: String,
    /// Whether the application speaks TLS there. Its certificate is not checked, as the kubelet does not.
    pub tls: bool,
    /// How long the application may take: the probe's `timeoutSeconds`.
    pub timeout: Duration,
}

/// The probes Kubernetes knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Restarts the container.
    Liveness,
    /// Takes the pod out of its Services.
    Readiness,
    /// Holds the two others back.
    Startup,
}

impl ProbeKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Liveness, Self::Readiness, Self::Startup];

    /// `liveness`, `readiness` or `startup`: part of the names of listeners, clusters and paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }

    /// The port Envoy serves probes of this kind at.
    pub fn port(self) -> u16 {
        match self {
            Self::Liveness => ports::LIVENESS_PROBE,
            Self::Readiness => ports::READINESS_PROBE,
            Self::Startup => ports::STARTUP_PROBE,
        }
    }

    /// The path a probe of this kind of `container` is rewritten to.
    pub fn public_path(self, container: &str) -> String {
        format!("/osm-{}-probe/{container}", self.name())
    }
}

impl Probe {
    /// The path at which Envoy serves this probe: one for each container, so that probes of several containers do
    /// not shadow each other.
    pub fn public_path(&self) -> String {
        self.kind.public_path(&self.container)
    }
}

impl Bootstrap<'_> {
    /// The file's content: JSON, which is YAML, so that it may be called `bootstrap.yaml`.
    pub fn render(&self) -> String {
        template::render(self)
    }

    /// All of it but the node.
    fn message(&self) -> Message {
        let controller = match self.relay {
            None => controller::cluster(self),
            Some(folder) => relay::cluster(folder),
        };
        Message {
            admin: Some(Admin {
                address: Some(ip_address(LOOPBACK, ports::ENVOY_ADMIN)),
                // The way to look into a sidecar that is out of connections.
                ignore_global_conn_limit: true,
                ..Default::default()
            }),
            dynamic_resources: Some(DynamicResources {
                ads_config: Some(ads_config(&controller.name)),
                cds_config: Some(ads()),
                lds_config: Some(ads()),
                ..Default::default()
            }),
            static_resources: Some(StaticResources {
                listeners: probe::listeners(self.probes, self.bind),
                clusters: [controller, probe::admin_cluster()]
                    .into_iter()
                    .chain(self.probes.iter().map(probe::cluster))
                    .collect(),
                ..Default::default()
            }),
            overload_manager: Some(overload_manager()),
            stats_config: Some(StatsConfig {
                stats_matcher: Some(unwanted_stats()),
                ..Default::default()
            }),
            // Statistics of a cluster are made at its first use: most sidecars use few of the clusters they know.
            deferred_stat_options: Some(DeferredStatOptions {
                enable_deferred_creation_stats: true,
            }),
            ..Default::default()
        }
    }
}

fn ads_config(cluster: &str) -> ApiConfigSource {
    ApiConfigSource {
        api_type: ApiType::DeltaGrpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        grpc_services: vec![GrpcService {
            target_specifier: Some(controller::stream(cluster)),
            ..Default::default()
        }],
        set_node_on_first_message_only: true,
        ..Default::default()
    }
}

fn overload_manager() -> OverloadManager {
    let connections = DownstreamConnectionsConfig {
        max_active_downstream_connections: MAX_CONNECTIONS,
    };
    OverloadManager {
        refresh_interval: Some(seconds(1)),
        resource_monitors: vec![ResourceMonitor {
            name: "envoy.resource_monitors.global_downstream_max_connections".to_owned(),
            config_type: Some(resource_monitor::ConfigType::TypedConfig(any(&connections))),
        }],
        ..Default::default()
    }
}

/// What nobody looks at and every cluster has: about half of a sidecar's statistics.
fn unwanted_stats() -> StatsMatcher {
    let contains = [
        ".ssl.ciphers.",
        ".ssl.curves.",
        ".ssl.sigalgs.",
        ".ssl.versions.",
        ".internal.upstream_rq",
        ".external.upstream_rq",
        ".http3.",
        "_http3_",
    ];
    let prefixes = ["cluster.osm-proxy-admin.", "filesystem."];
    let patterns = contains
        .into_iter()
        .map(|text| MatchPattern::Contains(text.to_owned()))
        .chain(
            prefixes
                .into_iter()
                .map(|text| MatchPattern::Prefix(text.to_owned())),
        )
        .map(|pattern| StringMatcher {
            match_pattern: Some(pattern),
            ignore_case: false,
        })
        .collect();
    StatsMatcher {
        stats_matcher: Some(stats_matcher::StatsMatcher::ExclusionList(ListStringMatcher {
            patterns,
        })),
    }
}

#[cfg(test)]
mod tests;
