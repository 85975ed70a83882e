//! The ports of the mesh, in pods and in the control plane.

/// Envoy's admin endpoint, on the pod's loopback only.
pub const ENVOY_ADMIN: u16 = 15000;
/// Outbound traffic is redirected here.
pub const OUTBOUND: u16 = 15001;
/// Inbound traffic is redirected here.
pub const INBOUND: u16 = 15003;
/// Prometheus scrapes Envoy's statistics here.
pub const PROMETHEUS: u16 = 15010;
/// Rewritten liveness probes arrive here.
pub const LIVENESS_PROBE: u16 = 15901;
/// Rewritten readiness probes arrive here.
pub const READINESS_PROBE: u16 = 15902;
/// Rewritten startup probes arrive here.
pub const STARTUP_PROBE: u16 = 15903;
/// Rewritten TCP and gRPC probes arrive here, at `osm-sidecar healthcheck`.
pub const HEALTHCHECK: u16 = 15904;
/// Health and metrics of `osm-sidecar relay`, in pods that have it.
pub const RELAY: u16 = 15905;
/// The controller's aggregated discovery service (gRPC, mutual TLS).
pub const ADS: u16 = 15128;
/// The injector's webhook (HTTPS).
pub const INJECTOR_WEBHOOK: u16 = 9090;
/// Health, metrics and version of every control plane component (HTTP).
pub const ADMIN: u16 = 9091;
/// Pages for `osm` that name workloads, and debug pages while MeshConfig switches them on (HTTP, loopback only).
pub const DEBUG: u16 = 9092;
/// The controller's validating webhook (HTTPS).
pub const VALIDATOR_WEBHOOK: u16 = 9093;
