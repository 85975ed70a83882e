//! Clients that make one attempt and say what came of it.
//!
//! Invariant: a refusal by the peer is a result, not an error of the program.

pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod websocket;

use std::error::Error;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use osm_e2e::report::Answer;

/// Most bytes of an answer that are kept.
pub(crate) const MOST_BODY: usize = 1024 * 1024;

/// An answer that is an error: a word for counters, then the whole chain of causes.
pub(crate) fn failed(error: &(dyn Error + 'static), started: Instant) -> Answer {
    let mut word = "error";
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            word = match error.kind() {
                ErrorKind::ConnectionRefused => "refused",
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionAborted => "closed",
                ErrorKind::TimedOut => "timeout",
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
                _ => word,
            };
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed() || error.is_canceled())
        {
            word = "closed";
        }
        text = if text.is_empty() {
            error.to_string()
        } else {
            format!("{text}: {error}")
        };
        cause = error.source();
    }
    if word == "error" && text.contains("dns error") {
        word = "dns";
    }
    Answer {
        error: Some(format!("{word}: {text}")),
        latency_us: micros(started),
        ..Answer::default()
    }
}

/// An answer that did not come within `limit`.
pub(crate) fn timed_out(limit: Duration, started: Instant) -> Answer {
    Answer {
        error: Some(format!("timeout: no answer in {limit:?}")),
        latency_us: micros(started),
        ..Answer::default()
    }
}

/// Microseconds since `started`.
pub(crate) fn micros(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Reads seconds, with a fraction if need be.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
