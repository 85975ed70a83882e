//! What the discovery service counts. Labels are kinds of resources and fixed words (law 12).

use osm_core::resource::ResourceType;
use osm_runtime::metrics::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Type {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Update {
    resource_type: &'static str,
    success: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    reason: &'static str,
}

/// Metrics of the discovery service; the names that the original had are kept.
#[derive(Clone, Debug)]
pub struct AdsMetrics {
    pub(super) connected: Gauge,
    pub(super) reconnected: Counter,
    pub(super) too_many: Counter,
    pub(super) refused: Family<Reason, Counter>,
    pub(super) ended: Family<Reason, Counter>,
    requests: Family<Type, Counter>,
    sent: Family<Type, Counter>,
    failed: Family<Type, Counter>,
    resources: Family<Type, Counter>,
    bytes: Family<Type, Counter>,
    rejected: Family<Type, Counter>,
    stale: Family<Type, Counter>,
    updated: Family<Update, Histogram>,
}

impl Default for AdsMetrics {
    fn default() -> Self {
        let buckets = || Histogram::new([0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 90.0]);
        Self {
            connected: Gauge::default(),
            reconnected: Counter::default(),
            too_many: Counter::default(),
            refused: Family::default(),
            ended: Family::default(),
            requests: Family::default(),
            sent: Family::default(),
            failed: Family::default(),
            resources: Family::default(),
            bytes: Family::default(),
            rejected: Family::default(),
            stale: Family::default(),
            updated: Family::new_with_constructor(buckets),
        }
    }
}

impl AdsMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register(
                "osm_proxy_connect_count",
                "Proxies connected",
                new.connected.clone(),
            );
            registry.register(
                "osm_proxy_reconnect_count",
                "Proxies that came with configuration from before",
                new.reconnected.clone(),
            );
            registry.register(
                "osm_proxy_max_connections_rejected",
                "Proxies refused because of maxDataPlaneConnections",
                new.too_many.clone(),
            );
            registry.register(
                "osm_proxy_refused",
                "Streams refused, by reason",
                new.refused.clone(),
            );
            registry.register("osm_proxy_ended", "Streams ended, by reason", new.ended.clone());
            registry.register(
                "osm_proxy_xds_request_count",
                "Requests of proxies",
                new.requests.clone(),
            );
            registry.register(
                "osm_proxy_response_send_success_count",
                "Responses sent",
                new.sent.clone(),
            );
            registry.register(
                "osm_proxy_response_send_error_count",
                "Responses that could not be sent",
                new.failed.clone(),
            );
            registry.register(
                "osm_proxy_resources_sent",
                "Resources sent",
                new.resources.clone(),
            );
            registry.register(
                "osm_proxy_bytes_sent",
                "Bytes of responses sent",
                new.bytes.clone(),
            );
            registry.register(
                "osm_proxy_rejected",
                "Responses that proxies rejected",
                new.rejected.clone(),
            );
            registry.register(
                "osm_proxy_stale",
                "Answers to responses that are not in flight",
                new.stale.clone(),
            );
            registry.register(
                "osm_proxy_config_update_time",
                "Seconds from sending a response to its answer",
                new.updated.clone(),
            );
        });
        new
    }

    pub(super) fn requested(&self, kind: Option<ResourceType>) {
        self.requests.get_or_create(&of(kind)).inc();
    }

    pub(super) fn sent(&self, kind: ResourceType, resources: usize, bytes: usize) {
        let of = of(Some(kind));
        self.sent.get_or_create(&of).inc();
        self.resources.get_or_create(&of).inc_by(resources as u64);
        self.bytes.get_or_create(&of).inc_by(bytes as u64);
    }

    pub(super) fn failed(&self, kind: ResourceType) {
        self.failed.get_or_create(&of(Some(kind))).inc();
    }

    pub(super) fn answered(&self, kind: ResourceType, success: bool, seconds: f64) {
        if !success {
            self.rejected.get_or_create(&of(Some(kind))).inc();
        }
        let update = Update {
            resource_type: name(kind),
            success: if success { "true" } else { "false" },
        };
        self.updated.get_or_create(&update).observe(seconds);
    }

    pub(super) fn stale(&self, kind: ResourceType) {
        self.stale.get_or_create(&of(Some(kind))).inc();
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Reason { reason }).inc();
    }
}

fn of(kind: Option<ResourceType>) -> Type {
    Type {
        r#type: kind.map_or("unknown", name),
    }
}

/// The kind's short name.
pub(crate) fn name(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => "CDS",
        ResourceType::Endpoint => "EDS",
        ResourceType::Listener => "LDS",
        ResourceType::Route => "RDS",
        ResourceType::Secret => "SDS",
    }
}
