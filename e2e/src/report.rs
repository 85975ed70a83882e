//! Results of single requests and of load, as `osm-demo` prints them and the tests read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The response header that names the pod that answered.
pub const RESPONDER_HEADER: &str = "x-responder";

/// Whether an outcome is that of a request policy refused. A rule that does not match is 404, a client that is not among
/// its sources 403; to what a client may not call at all, its own sidecar does not lead: closed, reset or refused.
pub fn is_denial(outcome: &str) -> bool {
    matches!(outcome, "403" | "404" | "closed" | "reset" | "refused")
}

/// What one request got, whatever its protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// HTTP status, or gRPC's as a number.
    pub status: Option<u16>,
    /// Why there is no answer: one of a few words, then the details.
    pub error: Option<String>,
    /// Response headers; of several values the last.
    pub headers: BTreeMap<String, String>,
    /// The body, the bytes a TCP peer sent, or the text of a WebSocket message; at most 64 KiB.
    pub body: String,
    /// From the start of the request, connecting included, to its end.
    pub latency_us: u64,
}

impl Answer {
    /// The pod that answered, if it said so.
    pub fn responder(&self) -> Option<&str> {
        self.headers.get(RESPONDER_HEADER).map(String::as_str)
    }

    /// Whether policy refused it, and the application did not see it.
    pub fn is_denied(&self) -> bool {
        self.responder().is_none() && is_denial(&self.outcome())
    }

    /// The status, or the word for what went wrong: what counters count.
    pub fn outcome(&self) -> String {
        match (&self.error, self.status) {
            (Some(error), _) => error.split(':').next().unwrap_or(error).to_owned(),
            (None, Some(status)) => status.to_string(),
            (None, None) => "ok".to_owned(),
        }
    }
}

/// What a stream of requests got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Requests started.
    pub sent: u64,
    /// Requests that ended as was wanted: by default any status below 400.
    pub ok: u64,
    /// Requests that did not.
    pub failed: u64,
    /// How many ended how: a status, or the word for what went wrong.
    pub outcomes: BTreeMap<String, u64>,
    /// How many each pod answered.
    pub responders: BTreeMap<String, u64>,
    /// How many each `Identity` header stood for (the book applications send one).
    pub identities: BTreeMap<String, u64>,
    /// The first failures, each with when and why; at most [`Tally::MOST_FAILURES`].
    pub failures: Vec<Failure>,
    /// Latency of the requests that were answered, in microseconds.
    pub latency_us: Latency,
    /// Requests that could not be started in time because too many were under way; they count as failed.
    pub late: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

impl Tally {
    /// Failures that are kept in full; all are counted.
    pub const MOST_FAILURES: usize = 1000;

    /// Counts one answer.
    pub fn add(&mut self, answer: &Answer, wanted: bool, at_ms: u64) {
        *self.outcomes.entry(answer.outcome()).or_default() += 1;
        if let Some(pod) = answer.responder() {
            *self.responders.entry(pod.to_owned()).or_default() += 1;
        }
        if let Some(identity) = answer.headers.get("identity") {
            *self.identities.entry(identity.clone()).or_default() += 1;
        }
        if wanted {
            self.ok += 1;
            return;
        }
        self.failed += 1;
        if self.failures.len() < Self::MOST_FAILURES {
            let reason = match (&answer.error, answer.status) {
                (Some(error), _) => error.clone(),
                (None, status) => format!(
                    "status {}: {}",
                    status.map_or_else(|| "?".to_owned(), |status| status.to_string()),
                    answer.body.chars().take(200).collect::<String>()
                ),
            };
            self.failures.push(Failure { at_ms, reason });
        }
    }

    /// How many requests ended in `outcome`.
    pub fn count(&self, outcome: &str) -> u64 {
        self.outcomes.get(outcome).copied().unwrap_or_default()
    }
}

/// One request that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Since the first request.
    pub at_ms: u64,
    /// Why.
    pub reason: String,
}

/// A distribution of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// Nine of ten are faster.
    pub p90: u64,
    /// 99 of 100 are faster.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// The distribution of `samples`.
    pub fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let at = |quantile: usize| {
            let index = (samples.len() * quantile / 100).min(samples.len().saturating_sub(1));
            samples.get(index).copied().unwrap_or_default()
        };
        Self {
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: samples.last().copied().unwrap_or_default(),
        }
    }
}

/// What a TLS server showed to a client that trusts everyone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handshake {
    /// The certificates the server sent, its own first.
    pub certificates: Vec<Certificate>,
    /// Protocol version, if the handshake ended well.
    pub version: Option<String>,
    /// The application protocol the server chose.
    pub alpn: Option<String>,
    /// Why it did not end well, or what the server sent after it.
    pub error: Option<String>,
}

/// What stands in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// Common name of the subject.
    pub common_name: String,
    /// Common name of the issuer.
    pub issuer: String,
    /// DNS and URI alternative names.
    pub names: Vec<String>,
    /// End of validity, in seconds since 1970.
    pub not_after: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_statuses_or_the_first_word_of_the_error() {
        assert_eq!(
            Answer {
                status: Some(403),
                ..Answer::default()
            }
            .outcome(),
            "403"
        );
        let reset = Answer {
            error: Some("reset: by peer".into()),
            ..Answer::default()
        };
        assert_eq!(reset.outcome(), "reset");
    }

    #[test]
    fn a_tally_keeps_the_reason_of_every_failure() {
        let mut tally = Tally::default();
        tally.add(
            &Answer {
                status: Some(200),
                ..Answer::default()
            },
            true,
            0,
        );
        tally.add(
            &Answer {
                status: Some(503),
                body: "no healthy upstream".into(),
                ..Answer::default()
            },
            false,
            7,
        );
        assert_eq!((tally.ok, tally.failed, tally.count("503")), (1, 1, 1));
        assert_eq!(
            tally.failures,
            [Failure {
                at_ms: 7,
                reason: "status 503: no healthy upstream".into()
            }]
        );
    }

    #[test]
    fn latency_of_nothing_is_nothing() {
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        assert_eq!(
            Latency::of((1..=100).collect()),
            Latency {
                p50: 51,
                p90: 91,
                p99: 100,
                max: 100
            }
        );
    }
}
