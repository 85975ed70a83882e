//! `config.openservicemesh.io/v1alpha2` MeshConfig: the settings of a mesh.
//!
//! Every field is optional when read, because the original's were: an absent field has the zero value of its type
//! (permissive mode and egress off), as with a MeshConfig written by hand for the original.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube_derive::CustomResource;
use serde::{Deserialize, Serialize};

/// The settings of a mesh; one object, `osm-mesh-config`, in the control plane's namespace.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "config.openservicemesh.io",
    version = "v1alpha2",
    kind = "MeshConfig",
    plural = "meshconfigs",
    shortname = "meshconfig",
    namespaced,
    schema = "disabled",
    crates(
        kube_core = "::kube_core",
        k8s_openapi = "::k8s_openapi",
        serde = "::serde",
        serde_json = "::serde_json"
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfigSpec {
    /// The sidecars.
    pub sidecar: SidecarSpec,
    /// The traffic.
    pub traffic: TrafficSpec,
    /// Logs, traces and debug pages.
    pub observability: ObservabilitySpec,
    /// Certificates.
    pub certificate: CertificateSpec,
    /// Switches of features.
    pub feature_flags: FeatureFlags,
}

/// Settings of the sidecars.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarSpec {
    /// Runs the init container privileged (some SELinux clusters need it).
    pub enable_privileged_init_container: bool,
    /// Envoy's log level: trace, debug, info, warning, warn, error, critical or off; `error` when empty.
    pub log_level: String,
    /// Image of the Envoy container; the injector's default when empty.
    pub envoy_image: String,
    /// Image of the Envoy container on Windows nodes; not used.
    pub envoy_windows_image: String,
    /// Image of the init container; the injector's default when empty.
    pub init_container_image: String,
    /// Most proxies one controller replica serves; 0 is no limit.
    pub max_data_plane_connections: i64,
    /// Kept for compatibility; the configuration of a proxy never goes stale, so nothing is resent on a timer.
    pub config_resync_interval: String,
    /// Resources of the Envoy container.
    pub resources: ResourceRequirements,
    /// Lowest TLS version between sidecars: TLS_AUTO or TLSv1_0 to TLSv1_3; TLSv1_2 when empty.
    pub tls_min_protocol_version: String,
    /// Highest TLS version between sidecars; TLSv1_3 when empty.
    pub tls_max_protocol_version: String,
    /// TLS 1.2 cipher suites in OpenSSL's names; Envoy's choice when empty.
    pub cipher_suites: Vec<String>,
    /// ECDH curves; Envoy's choice when empty.
    pub ecdh_curves: Vec<String>,
    /// Where the sidecar reaches the application: `Localhost` or `PodIP`.
    pub local_proxy_mode: LocalProxyMode,
    /// Keeps each sidecar's last good configuration and certificates in its pod, so that it can restart while no
    /// controller answers. An annotation of the pod or its namespace goes before it.
    pub keep_last_good_config: bool,
}

/// The address at which a sidecar reaches its application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LocalProxyMode {
    /// 127.0.0.1.
    #[default]
    Localhost,
    /// The pod's own address.
    PodIP,
}

/// Settings of the traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficSpec {
    /// Lets traffic to the outside of the mesh pass.
    pub enable_egress: bool,
    /// CIDRs that bypass the sidecars on the way out.
    #[serde(rename = "outboundIPRangeExclusionList")]
    pub outbound_ip_range_exclusion_list: Vec<String>,
    /// CIDRs; if any is given, only these go through the sidecars on the way out.
    #[serde(rename = "outboundIPRangeInclusionList")]
    pub outbound_ip_range_inclusion_list: Vec<String>,
    /// Ports that bypass the sidecars on the way out.
    pub outbound_port_exclusion_list: Vec<i32>,
    /// Ports that bypass the sidecars on the way in.
    pub inbound_port_exclusion_list: Vec<i32>,
    /// Network interfaces whose traffic bypasses the sidecars.
    pub network_interface_exclusion_list: Vec<String>,
    /// Every workload of the mesh may call every other; SMI access policies are ignored.
    pub enable_permissive_traffic_policy_mode: bool,
    /// External authorization of inbound requests.
    pub inbound_external_authorization: ExternalAuthorization,
}

/// An external authorization server (Envoy's `ext_authz`, gRPC).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalAuthorization {
    /// Whether it is asked.
    pub enable: bool,
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: i32,
    /// Prefix of Envoy's statistics.
    pub stat_prefix: String,
    /// Go duration it may take.
    pub timeout: String,
    /// Whether requests pass when it fails.
    pub failure_mode_allow: bool,
}

/// Logs, traces and debug pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObservabilitySpec {
    /// Log level of the control plane.
    pub osm_log_level: String,
    /// Serves the debug pages (on the pods' loopback).
    pub enable_debug_server: bool,
    /// Distributed tracing.
    pub tracing: TracingSpec,
}

/// Distributed tracing in Zipkin's format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TracingSpec {
    /// Whether sidecars send spans.
    pub enable: bool,
    /// The collector's port; 9411 when 0.
    pub port: i32,
    /// The collector's address; `jaeger.<control plane namespace>.svc.cluster.local` when empty.
    pub address: String,
    /// The collector's path; `/api/v2/spans` when empty.
    pub endpoint: String,
}

/// Certificates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateSpec {
    /// Go duration a service certificate is valid; 24h when malformed, at least 10m.
    pub service_cert_validity_duration: String,
    /// Size of RSA keys where RSA is used: 2048 to 4096.
    pub cert_key_bit_size: i32,
    /// The certificate of an ingress gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_gateway: Option<IngressGatewayCertSpec>,
}

/// The certificate that an ingress gateway presents to the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressGatewayCertSpec {
    /// Its DNS names; the first one is the common name.
    pub subject_alt_names: Vec<String>,
    /// Go duration it is valid.
    pub validity_duration: String,
    /// The Secret it is written to.
    pub secret: SecretReference,
}

/// A Secret, by reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretReference {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// Switches of features, as the original had them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FeatureFlags {
    /// Not used: request metrics come from Envoy itself.
    #[serde(rename = "enableWASMStats")]
    pub enable_wasm_stats: bool,
    /// Deprecated by the original; not used.
    pub enable_egress_policy: bool,
    /// Not used.
    pub enable_multicluster_mode: bool,
    /// Not used: there is one mode.
    pub enable_snapshot_cache_mode: bool,
    /// Not used.
    pub enable_async_proxy_service_mapping: bool,
    /// IngressBackend policies.
    pub enable_ingress_backend_policy: bool,
    /// Active health checks between sidecars.
    pub enable_envoy_active_health_checks: bool,
    /// Retry policies.
    pub enable_retry_policy: bool,
    /// Has the controller make a MeshRootCertificate for the configured certificate provider. Those there are have effect
    /// whatever this says: turning it off must not take a root away.
    pub enable_mesh_root_certificate: bool,
}
