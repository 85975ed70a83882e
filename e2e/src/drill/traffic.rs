//! The requests that flow through real sidecars while things break.
//!
//! Owns the pod that sends them and how its books are read. Invariant: what is lost is the difference of two readings
//! of one pod's books; a pod that restarted in between has lost its books, and that is an error.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::harness::Kubernetes;
use crate::report::{Failure, Latency, Tally};

/// The port on which the sender shows its books, on its loopback.
pub const BOOKS: u16 = 9300;

/// Most reasons of single failures kept in a report.
const MOST: usize = 200;

/// What was sent between two readings, and what was lost of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Loss {
    /// Requests that ended.
    pub sent: u64,
    /// Requests that failed.
    pub failed: u64,
    /// How many ended how.
    pub outcomes: BTreeMap<String, u64>,
    /// How many each backend answered.
    pub responders: BTreeMap<String, u64>,
    /// Each failure with its time, in milliseconds since the first reading, and its reason; the first few hundred.
    pub failures: Vec<Failure>,
    /// Latencies since the sender started, in microseconds.
    pub latency_us: Latency,
    /// Between the readings.
    pub elapsed_ms: u64,
}

impl Loss {
    /// The difference of two readings.
    ///
    /// # Errors
    /// When they are not of one life of the sender.
    pub fn between(before: &Tally, after: &Tally) -> Result<Self> {
        ensure!(
            after.elapsed_ms >= before.elapsed_ms && after.sent >= before.sent,
            "the sender of requests has restarted: what it counted is lost"
        );
        let less = |before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>| {
            let left = |(name, count): (&String, &u64)| {
                let less = count - before.get(name).copied().unwrap_or_default().min(*count);
                (less > 0).then(|| (name.clone(), less))
            };
            after.iter().filter_map(left).collect()
        };
        let failures = after.failures.iter().skip(before.failures.len()).take(MOST);
        Ok(Self {
            sent: after.sent - before.sent,
            failed: after.failed - before.failed,
            outcomes: less(&before.outcomes, &after.outcomes),
            responders: less(&before.responders, &after.responders),
            failures: failures
                .map(|failure| Failure {
                    at_ms: failure.at_ms.saturating_sub(before.elapsed_ms),
                    reason: failure.reason.clone(),
                })
                .collect(),
            latency_us: after.latency_us,
            elapsed_ms: after.elapsed_ms - before.elapsed_ms,
        })
    }

    /// How many failed of how many, and why, in one line.
    pub fn summary(&self) -> String {
        let rate = self.sent * 1000 / self.elapsed_ms.max(1);
        let mut text = format!(
            "{} of {} failed ({rate} a second; 99 of 100 within {:.1} ms)",
            self.failed,
            self.sent,
            self.latency_us.p99 as f64 / 1000.0
        );
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for failure in &self.failures {
            *reasons.entry(&failure.reason).or_default() += 1;
        }
        for (reason, count) in reasons.into_iter().take(3) {
            text.push_str(&format!("; {count} times \"{reason}\""));
        }
        text
    }
}

/// Reads the books of a sender.
pub async fn read(kubernetes: &Kubernetes, namespace: &str, pod: &str) -> Result<Tally> {
    let text = kubernetes.fetch(namespace, pod, BOOKS, "/").await?;
    serde_json::from_str(&text).with_context(|| format!("the books of {namespace}/{pod} make no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(sent: u64, failed: u64, elapsed_ms: u64) -> Tally {
        Tally {
            sent,
            ok: sent - failed,
            failed,
            elapsed_ms,
            outcomes: [("200".to_owned(), sent - failed), ("503".to_owned(), failed)].into(),
            failures: (0..failed)
                .map(|number| Failure {
                    at_ms: number * 100,
                    reason: format!("number {number}"),
                })
                .collect(),
            ..Tally::default()
        }
    }

    #[test]
    fn only_what_happened_between_the_readings_counts() {
        let loss = Loss::between(&tally(100, 2, 1000), &tally(250, 3, 2000)).unwrap();
        assert_eq!((loss.sent, loss.failed), (150, 1));
        assert_eq!(loss.outcomes["503"], 1);
        assert_eq!(loss.failures.len(), 1);
        assert_eq!(loss.failures[0].reason, "number 2");
        assert!(loss.summary().contains("1 of 150"), "{}", loss.summary());
    }

    #[test]
    fn a_sender_that_restarted_is_no_witness() {
        assert!(Loss::between(&tally(100, 0, 1000), &tally(50, 0, 500)).is_err());
    }
}
