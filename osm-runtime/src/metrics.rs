//! The process's metrics: one registry, and its text for Prometheus.
//!
//! Owns the exposition. Invariant: names that dashboards of the original match on (counters ending in `_count`, which
//! OpenMetrics would rename) are exposed byte for byte. Labels are bounded by whoever registers them (law 12).

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{encoding::text::encode, registry::Registry};

/// Content type of [`Metrics::render`]: Prometheus' text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The registry of a process. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics: `metrics.register(|registry| registry.register("osm_...", "help", family.clone()))`.
    ///
    /// A name ending in `_count` is exposed as it is, any other counter gets the suffix `_total`.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock())
    }

    /// All metrics in Prometheus' text format (version 0.0.4).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String fails only if a metric's own encoder does; what was written so far is then served.
        if encode(&mut text, &self.registry.lock()).is_err() {
            tracing::error!("a metric cannot be encoded");
        }
        to_prometheus(&text)
    }
}

/// OpenMetrics to Prometheus' older text format: no `# EOF`, no `# UNIT`, and counters named `..._count` keep that
/// name. Help texts come without the full stop that the encoder appends to the end of what already ends in one.
fn to_prometheus(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut counter: Option<String> = None;
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            counter = (kind == "counter").then(|| name.to_owned());
            let suffix = if kind == "counter" && !name.ends_with("_count") {
                "_total"
            } else {
                ""
            };
            let kind = if kind == "unknown" || kind == "info" {
                "gauge"
            } else {
                kind
            };
            result.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            continue;
        }
        match &counter {
            Some(name) if name.ends_with("_count") && !line.starts_with('#') => {
                match line
                    .strip_prefix(name.as_str())
                    .and_then(|rest| rest.strip_prefix("_total"))
                {
                    Some(rest) => {
                        result.push_str(name);
                        result.push_str(rest);
                    }
                    None => result.push_str(line),
                }
            }
            _ => result.push_str(line),
        }
        result.push('\n');
    }
    result
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};

    use super::*;

    #[test]
    fn names_of_the_original_are_kept() {
        let metrics = Metrics::new();
        let issued = Counter::<u64>::default();
        issued.inc();
        let family = Family::<Vec<(String, String)>, Counter>::default();
        family
            .get_or_create(&vec![("kind".to_owned(), "a\"b\n".to_owned())])
            .inc();
        let gauge = Gauge::<i64>::default();
        metrics.register(|registry| {
            registry.register("osm_cert_issued_count", "Issued", issued);
            registry.register("osm_admission_webhook_response", "Responses", family);
            registry.register("osm_proxy_connect_count", "Connected", gauge);
            registry.register("osm_cert_issued_time", "Time", Histogram::new([0.5]));
        });
        let text = metrics.render();
        for line in [
            "# TYPE osm_cert_issued_count counter",
            "osm_cert_issued_count 1",
            "# TYPE osm_admission_webhook_response_total counter",
            "osm_admission_webhook_response_total{kind=\"a\\\"b\\n\"} 1",
            "# TYPE osm_proxy_connect_count gauge",
            "osm_proxy_connect_count 0",
            "osm_cert_issued_time_bucket{le=\"+Inf\"} 0",
            "osm_cert_issued_time_count 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("EOF"));
    }
}
