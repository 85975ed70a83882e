//! One measured phase: what was done, when the last proxy had answered, what it cost.
//!
//! Owns the arithmetic only. Latencies run from the moment before the write is sent to the API server until a proxy's
//! last answer, so that the API server's own time is in them.

use osm_core::resource::ResourceType;
use serde::Serialize;

use crate::tally::{Count, KindCount};

/// Seconds until proxies had answered, over all repetitions of a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// Half of the proxies.
    pub p50: f64,
    /// All but one in a hundred.
    pub p99: f64,
    /// The last one, in the slowest repetition.
    pub(crate) max: f64,
    /// The last one, in the median repetition.
    pub(crate) last: f64,
}

impl Latency {
    /// From each repetition's microseconds, one for each proxy.
    pub(crate) fn of(repetitions: &[Vec<u64>]) -> Self {
        let mut all: Vec<u64> = repetitions.iter().flatten().copied().collect();
        let mut lasts: Vec<u64> = repetitions
            .iter()
            .filter_map(|one| one.iter().max().copied())
            .collect();
        all.sort_unstable();
        lasts.sort_unstable();
        Self {
            p50: quantile(&all, 0.50),
            p99: quantile(&all, 0.99),
            max: quantile(&all, 1.0),
            last: quantile(&lasts, 0.50),
        }
    }
}

/// A quantile of sorted microseconds, in seconds; 0 if there are none.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let position = (last as f64 * share).ceil() as usize;
    sorted[position.min(last)] as f64 / 1e6
}

/// One phase.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Phase {
    /// What was done.
    pub(crate) name: String,
    /// How often; counts and CPU time are of one repetition on average.
    pub(crate) repetitions: usize,
    /// Wall time of the whole phase, seconds.
    pub(crate) seconds: f64,
    /// Proxies that were sent something, in one repetition.
    pub(crate) proxies: usize,
    /// Proxies that should have been; `None` where it does not matter.
    pub(crate) expected: Option<usize>,
    /// Seconds until they had answered.
    pub(crate) latency: Latency,
    /// Responses, by kind of resource.
    pub(crate) sent: Sent,
    /// Streams opened.
    pub(crate) connects: u64,
    /// Streams refused.
    pub(crate) refusals: u64,
    /// Connections and streams that failed.
    pub(crate) failures: u64,
    /// Responses that proxies rejected.
    pub(crate) rejections: u64,
    /// Resources the engine built.
    pub(crate) built: f64,
    /// CPU seconds of the server.
    pub(crate) cpu: f64,
    /// CPU seconds of the server for each second of the phase.
    pub(crate) load: f64,
    /// The same while nothing was asked of it, as measured last: what the pings of all connections cost, if it
    /// was long enough for them.
    pub(crate) idle: f64,
    /// Resident memory of the server at the end, MB.
    pub(crate) resident: f64,
    /// Its peak within the phase, MB.
    pub(crate) peak: f64,
    /// Streams of each controller at the end, if there are several and they had to be made.
    pub(crate) streams: Vec<usize>,
    /// CPU seconds of the fake Envoys.
    pub(crate) generator_cpu: f64,
    /// CPU seconds of the API server and etcd.
    pub(crate) api_cpu: f64,
    /// The server's memory towards the end, against earlier in the phase.
    pub(crate) growth: Option<f64>,
    /// What else there is to say.
    pub(crate) note: String,
}

impl Phase {
    /// CPU seconds of the server for one repetition beyond what it would have used anyway.
    pub(crate) fn work(&self) -> f64 {
        (self.cpu - self.idle * self.seconds / self.repetitions.max(1) as f64).max(0.0)
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sent {
    /// Clusters.
    pub(crate) cds: KindCount,
    /// Endpoints.
    pub(crate) eds: KindCount,
    /// Listeners.
    pub(crate) lds: KindCount,
    /// Routes.
    pub(crate) rds: KindCount,
    /// Secrets.
    pub(crate) sds: KindCount,
    /// Together.
    pub(crate) all: KindCount,
}

impl Sent {
    /// Of one of `repetitions`.
    pub(crate) fn of(count: &Count, repetitions: usize) -> Self {
        let part = |kind: KindCount| {
            let times = repetitions.max(1) as u64;
            KindCount {
                responses: kind.responses / times,
                resources: kind.resources / times,
                repeated: kind.repeated / times,
                removed: kind.removed / times,
                bytes: kind.bytes / times,
            }
        };
        let kind = |kind: ResourceType| part(count.kinds[kind as usize]);
        Self {
            cds: kind(ResourceType::Cluster),
            eds: kind(ResourceType::Endpoint),
            lds: kind(ResourceType::Listener),
            rds: kind(ResourceType::Route),
            sds: kind(ResourceType::Secret),
            all: part(count.all()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_what_idling_is_not() {
        let phase = Phase {
            repetitions: 10,
            seconds: 5.0,
            cpu: 0.2,
            idle: 0.1,
            ..Phase::default()
        };
        assert!((phase.work() - 0.15).abs() < 1e-9);
        let idle = Phase { cpu: 0.04, ..phase };
        assert_eq!(idle.work(), 0.0);
    }

    #[test]
    fn latencies_are_of_proxies_and_the_last_is_of_repetitions() {
        let slow: Vec<u64> = (1..=100).map(|n| n * 1_000).collect();
        let latency = Latency::of(&[slow, vec![50_000; 100], vec![60_000; 100]]);
        assert_eq!((latency.max, latency.last), (0.1, 0.06));
        assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
        assert_eq!(Latency::of(&[]), Latency::default());
    }
}
