//! The admin endpoint: probes, metrics, version; and the pages on loopback.
//!
//! Owns the HTTP of both. Invariant: probes and scrapes are answered by a thread of their own, so that a busy mesh
//! cannot fail them; nothing here reads or changes the mesh.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    thread::JoinHandle,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use osm_core::api::ports;
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    health::Health,
    metrics::{self, Metrics},
    serve::{Limits, ServeMetrics, Settings, serve_plain},
};

/// What `/version` says; the JSON keys are the original's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// The release.
    pub version: &'static str,
    /// The commit it was built from.
    pub git_commit: &'static str,
    /// When it was built.
    pub build_date: &'static str,
}

/// What the admin endpoint shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// For `/health/ready`, `/health/alive` and `/healthz`.
    pub health: Health,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// For `/version`.
    pub version: Version,
    /// Further pages, such as the controller's `/smi/version`.
    pub more: Router,
}

impl Admin {
    /// The pages.
    pub fn router(self) -> Router {
        let more = self.more.clone();
        Router::new()
            .route("/health/ready", get(ready))
            .route("/health/alive", get(alive))
            .route("/healthz", get(alive))
            .route("/metrics", get(scrape))
            .route("/version", get(version))
            .with_state(self)
            .merge(more)
    }

    /// Serves the pages at `address` on a thread of its own, until `stop`. Bound when this returns.
    ///
    /// # Errors
    /// When the address cannot be bound or the thread cannot be started.
    pub fn spawn(
        self,
        address: SocketAddr,
        metrics: ServeMetrics,
        stop: CancellationToken,
    ) -> io::Result<(SocketAddr, JoinHandle<()>)> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let settings = Settings {
            name: "admin",
            limits: Limits::admin(),
            metrics,
            drain: stop,
            seats: None,
        };
        let serve = move || runtime.block_on(serve_plain(listener, settings, self.router()));
        Ok((
            address,
            std::thread::Builder::new().name("admin".into()).spawn(serve)?,
        ))
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let reasons = admin.health.not_ready();
    if reasons.is_empty() {
        return (StatusCode::OK, "Service is ready\n").into_response();
    }
    let lines = reasons.iter().map(|(name, reason)| format!("{name}: {reason}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect::<String>()).into_response()
}

async fn alive(State(admin): State<Admin>) -> Response {
    let stuck = admin.health.stuck();
    if stuck.is_empty() {
        return (StatusCode::OK, "Service is alive\n").into_response();
    }
    let lines = stuck
        .iter()
        .map(|(name, silence)| format!("{name}: silent for {} s\n", silence.as_secs()));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect::<String>()).into_response()
}

async fn scrape(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], admin.metrics.render()).into_response()
}

async fn version(State(admin): State<Admin>) -> Json<Version> {
    Json(admin.version)
}

/// Serves pages on the pod's loopback, at [`ports::DEBUG`], until `stop`: `pages` always, `debug` while `enabled` says
/// so. Whoever reaches it may forward ports to the pod or run programs in it. A port that is taken is logged and tried
/// again: the pages are no reason not to serve the mesh.
pub async fn loopback(
    pages: Router,
    debug: Router,
    enabled: watch::Receiver<bool>,
    metrics: ServeMetrics,
    stop: CancellationToken,
) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::DEBUG));
    let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300));
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => tracing::error!(%address, %error, "the pages on loopback cannot be served"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = stop.cancelled() => return,
        }
    };
    let settings = Settings {
        name: "debug",
        limits: Limits::admin(),
        metrics,
        drain: stop,
        seats: None,
    };
    serve_plain(listener, settings, pages.merge(gated(debug, enabled))).await;
}

/// `pages` while `enabled` says so; a refusal that says how to switch them on while not.
fn gated(pages: Router, enabled: watch::Receiver<bool>) -> Router {
    pages.layer(middleware::from_fn(move |request: Request, next: Next| {
        let on = *enabled.borrow();
        async move {
            if on {
                return next.run(request).await;
            }
            let refusal = "the debug pages are off: set spec.observability.enableDebugServer of the MeshConfig to true\n";
            (StatusCode::NOT_FOUND, refusal).into_response()
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn debug_pages_are_refused_while_they_are_off() {
        let (switch, enabled) = watch::channel(false);
        let debug = Router::new().route("/debug", get(async || "inside"));
        let open = Router::new().route("/proxies", get(async || "open"));
        let pages = open.merge(gated(debug, enabled));
        let ask = async |path: &str| {
            let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
            let answer = tower::ServiceExt::oneshot(pages.clone(), request).await.unwrap();
            let status = answer.status();
            let body = axum::body::to_bytes(answer.into_body(), 1_000).await.unwrap();
            (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        };
        let (status, body) = ask("/debug").await;
        assert!(status == 404 && body.contains("enableDebugServer"), "{body}");
        assert_eq!(ask("/proxies").await, (200, "open".to_owned()));
        switch.send_replace(true);
        assert_eq!(ask("/debug").await, (200, "inside".to_owned()));
        switch.send_replace(false);
        assert_eq!(
            ask("/debug").await.0,
            404,
            "the switch is looked at for each request"
        );
    }

    /// Without a runtime of its own, as when every thread of the mesh is busy.
    #[test]
    fn probes_scrapes_and_version_are_answered() {
        let (health, metrics, stop) = (Health::new(), Metrics::new(), CancellationToken::new());
        let caches = health.condition("caches");
        let version = Version {
            version: "2.0.0",
            git_commit: "abc",
            build_date: "today",
        };
        let more = Router::new().route("/smi/version", get(async || "{}"));
        let admin = Admin {
            health: health.clone(),
            metrics: metrics.clone(),
            version,
            more,
        };
        let serving = ServeMetrics::register(&metrics);
        let (address, thread) = admin
            .spawn("127.0.0.1:0".parse().unwrap(), serving, stop.clone())
            .unwrap();

        caches.set_not_ready("waiting for pods");
        assert_eq!(
            fetch(address, "/health/ready"),
            (503, "caches: waiting for pods\n".to_owned())
        );
        caches.set_ready();
        assert_eq!(fetch(address, "/health/ready").0, 200);
        assert_eq!(fetch(address, "/health/alive").0, 200);
        drop(health.heartbeat("engine", Duration::ZERO));
        std::thread::sleep(Duration::from_millis(5));
        let (status, body) = fetch(address, "/healthz");
        assert!(status == 503 && body.starts_with("engine: silent"), "{body}");
        let (status, body) = fetch(address, "/metrics");
        assert!(
            status == 200 && body.contains("osm_server_connections{server=\"admin\"} 1"),
            "{body}"
        );
        let (_, body) = fetch(address, "/version");
        assert_eq!(
            body,
            r#"{"version":"2.0.0","git_commit":"abc","build_date":"today"}"#
        );
        assert_eq!(fetch(address, "/smi/version").0, 200);
        assert_eq!(fetch(address, "/no").0, 404);
        stop.cancel();
        thread.join().unwrap();
        assert!(TcpStream::connect(address).is_err());
    }
}
