//! What the relay says of itself: that it lives, and a few numbers for Prometheus.

use std::{
    convert::Infallible,
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use osm_core::relay::Store;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use super::Relay;

/// Connections at once.
const CONNECTIONS: usize = 8;
/// How long a client may take over one request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answers Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Nobody,
    Controller,
    Kept,
}

impl Side {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Nobody, "nobody"),
        (Self::Controller, "controller"),
        (Self::Kept, "kept"),
    ];
}

/// Who answers Envoy, and how often that was this program.
#[derive(Debug, Default)]
pub(super) struct State {
    side: AtomicU8,
    standbys: AtomicU64,
}

impl State {
    pub(super) fn set(&self, side: Side) {
        self.side.store(side as u8, Ordering::Relaxed);
        if side == Side::Kept {
            self.standbys.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Serves until it fails.
pub(super) async fn serve(port: u16, relay: &Arc<Relay>) -> Result<()> {
    let listener = listen(port).await?;
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await?;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let relay = relay.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = page(&relay, &request);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = timeout(PATIENCE, connection).await;
            drop(permit);
        });
    }
}

/// On all addresses of both protocols, or of IPv4 where the kernel has no other.
async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("port {port}: is it taken by another container of the pod?")),
    }
}

fn page(relay: &Relay, request: &Request<Incoming>) -> Response<String> {
    let (status, text) = match request.uri().path() {
        "/health/alive" => (StatusCode::OK, "alive\n".to_owned()),
        "/metrics" => (StatusCode::OK, metrics(&relay.state, relay.keeper.lock().store())),
        _ => (
            StatusCode::NOT_FOUND,
            "/health/alive and /metrics are here\n".to_owned(),
        ),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

fn metrics(state: &State, store: Option<&Store>) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "# HELP osm_relay_{name} {help}\n# TYPE osm_relay_{name} {kind}\n"
        );
        for (labels, value) in values {
            let _ = writeln!(text, "osm_relay_{name}{labels} {value}");
        }
    };
    let side = state.side.load(Ordering::Relaxed);
    let sides = Side::ALL.map(|(each, name)| {
        let now = u64::from(each as u8 == side);
        (format!("{{by=\"{name}\"}}"), now)
    });
    let sides: Vec<_> = sides
        .iter()
        .map(|(labels, now)| (labels.as_str(), *now))
        .collect();
    metric("proxy_answered", "gauge", "Who answers the proxy now.", &sides);
    let standbys = state.standbys.load(Ordering::Relaxed);
    metric(
        "standbys_total",
        "counter",
        "Streams that were answered from what is kept.",
        &[("", standbys)],
    );
    metric(
        "keeping",
        "gauge",
        "Whether the configuration is kept: not if it is too large.",
        &[("", u64::from(store.is_some()))],
    );
    let complete = store.is_some_and(Store::is_complete);
    metric(
        "kept_complete",
        "gauge",
        "Whether a whole configuration is kept.",
        &[("", u64::from(complete))],
    );
    let resources = store.map_or(0, Store::len) as u64;
    metric(
        "kept_resources",
        "gauge",
        "Resources that are kept.",
        &[("", resources)],
    );
    let bytes = store.map_or(0, Store::bytes);
    metric("kept_bytes", "gauge", "Bytes of what is kept.", &[("", bytes)]);
    text
}

#[cfg(test)]
mod tests {
    use osm_core::relay::Limits;

    use super::*;

    #[test]
    fn the_numbers_follow() {
        let state = State::default();
        let text = metrics(&state, None);
        assert!(
            text.contains("osm_relay_proxy_answered{by=\"nobody\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("osm_relay_keeping 0\n"), "{text}");
        state.set(Side::Kept);
        let (store, _) = Store::new(Limits::default());
        let text = metrics(&state, Some(&store));
        assert!(
            text.contains("osm_relay_proxy_answered{by=\"kept\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("osm_relay_standbys_total 1\n"), "{text}");
        assert!(text.contains("osm_relay_keeping 1\n"), "{text}");
    }
}
