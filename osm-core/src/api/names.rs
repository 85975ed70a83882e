//! Names of the objects the mesh makes, and of what it puts into Envoy.
//!
//! Invariant: what users, dashboards and scripts of the original match on keeps its spelling.

use crate::identity::TrustDomain;

/// The MeshConfig object in the control plane's namespace.
pub const MESH_CONFIG: &str = "osm-mesh-config";
/// The ConfigMap the default MeshConfig is made from, key [`PRESET_MESH_CONFIG_KEY`].
pub const PRESET_MESH_CONFIG: &str = "preset-mesh-config";
/// The key of the default MeshConfig's JSON in [`PRESET_MESH_CONFIG`].
pub const PRESET_MESH_CONFIG_KEY: &str = "preset-mesh-config.json";
/// The Secret of the built-in CA's root certificate and key.
pub const CA_BUNDLE_SECRET: &str = "osm-ca-bundle";
/// The MeshRootCertificate that is made for the configured certificate provider.
pub const MESH_ROOT_CERTIFICATE: &str = "osm-mesh-root-certificate";
/// The controller's Deployment and Service.
pub const CONTROLLER: &str = "osm-controller";
/// The injector's Deployment and Service.
pub const INJECTOR: &str = "osm-injector";
/// The validating webhook's Service.
pub const VALIDATOR: &str = "osm-validator";
/// The prefix of a pod's bootstrap Secret; the proxy's uuid follows.
pub const BOOTSTRAP_SECRET_PREFIX: &str = "envoy-bootstrap-config-";
/// The volume of a pod that holds its bootstrap Secret.
pub const BOOTSTRAP_VOLUME: &str = "envoy-bootstrap-config-volume";
/// The sidecar container.
pub const ENVOY_CONTAINER: &str = "envoy";
/// The init container that redirects the pod's traffic.
pub const INIT_CONTAINER: &str = "osm-init";
/// The container that answers rewritten TCP and gRPC probes.
pub const HEALTHCHECK_CONTAINER: &str = "osm-healthcheck";
/// The container that keeps the sidecar's last good configuration, and the cluster that Envoy knows it as.
pub const RELAY: &str = "osm-relay";
/// The memory-backed volume of what is kept.
pub const RELAY_VOLUME: &str = "osm-relay-volume";
/// The name Kubernetes gives Services inside a cluster; also the suffix of every SNI in the mesh.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The ALPN protocol of mesh traffic.
pub const ALPN: &str = "osm";

/// The mutating webhook configuration of a mesh.
pub fn mutating_webhook(prefix: &str, mesh: &str) -> String {
    format!("{prefix}-{mesh}")
}

/// The validating webhook configuration of a mesh.
pub fn validating_webhook(mesh: &str) -> String {
    format!("osm-validator-mesh-{mesh}")
}

/// The DNS name in the ADS server's certificate, pinned by every sidecar.
pub fn ads_server(trust_domain: &TrustDomain) -> String {
    format!("ads.{trust_domain}")
}

/// SDS name of a proxy's own service certificate.
///
/// The same for every identity, unlike in the original: an upstream cluster then does not depend on who uses it, and
/// its bytes are shared by the whole mesh. The stream decides whose certificate is served.
pub const SERVICE_CERTIFICATE: &str = "service-cert";
/// SDS name of the roots that the certificates of inbound clients must chain to.
pub const ROOT_CERTIFICATE_INBOUND: &str = "root-cert-for-mtls-inbound";
/// SDS name of the roots that the certificates of upstream services must chain to.
///
/// One for all services, unlike in the original, where it ends in `:<namespace>/<service>`: the names that a service's
/// certificate must have are in its cluster. A new root is then sent once to each proxy, not once for each service.
pub const ROOT_CERTIFICATE_OUTBOUND: &str = "root-cert-for-mtls-outbound";

/// The listener of outbound traffic.
pub const OUTBOUND_LISTENER: &str = "outbound-listener";
/// The listener of inbound traffic.
pub const INBOUND_LISTENER: &str = "inbound-listener";
/// The listener Prometheus scrapes.
pub const PROMETHEUS_LISTENER: &str = "inbound-prometheus-listener";
/// The cluster that traffic to the outside of the mesh leaves through.
pub const PASSTHROUGH_CLUSTER: &str = "passthrough-outbound";
/// The cluster of Envoy's own statistics.
pub const METRICS_CLUSTER: &str = "envoy-metrics-cluster";
/// The cluster of the tracing collector.
pub const TRACING_CLUSTER: &str = "envoy-tracing-cluster";
/// The cluster of the external authorization server.
pub const EXTERNAL_AUTHORIZATION_CLUSTER: &str = "envoy-external-authorization-cluster";
