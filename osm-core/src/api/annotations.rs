//! Annotations the mesh reads and writes.

/// On a namespace or pod: whether the sidecar is injected (`enabled|yes|true` or `disabled|no|false`).
pub const SIDECAR_INJECTION: &str = "openservicemesh.io/sidecar-injection";
/// On a namespace: whether its pods are scraped by Prometheus.
pub const METRICS: &str = "openservicemesh.io/metrics";
/// On a pod or namespace: whether the sidecar's last good configuration is kept in the pod, so that it can restart while
/// no controller answers (`enabled|yes|true` or `disabled|no|false`). MeshConfig says what holds where neither does.
pub const KEEP_LAST_GOOD_CONFIG: &str = "openservicemesh.io/keep-last-good-config";
/// On a pod: comma separated ports that bypass the sidecar on the way out.
pub const OUTBOUND_PORT_EXCLUSION_LIST: &str = "openservicemesh.io/outbound-port-exclusion-list";
/// On a pod: comma separated ports that bypass the sidecar on the way in.
pub const INBOUND_PORT_EXCLUSION_LIST: &str = "openservicemesh.io/inbound-port-exclusion-list";
/// On a pod: comma separated CIDRs that bypass the sidecar on the way out.
pub const OUTBOUND_IP_RANGE_EXCLUSION_LIST: &str = "openservicemesh.io/outbound-ip-range-exclusion-list";
/// On a pod: comma separated CIDRs; only these go through the sidecar on the way out.
pub const OUTBOUND_IP_RANGE_INCLUSION_LIST: &str = "openservicemesh.io/outbound-ip-range-inclusion-list";
/// Prometheus: scrape this pod.
pub const PROMETHEUS_SCRAPE: &str = "prometheus.io/scrape";
/// Prometheus: at this port.
pub const PROMETHEUS_PORT: &str = "prometheus.io/port";
/// Prometheus: at this path.
pub const PROMETHEUS_PATH: &str = "prometheus.io/path";
