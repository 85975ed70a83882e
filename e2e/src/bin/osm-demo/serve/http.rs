//! HTTP/1, HTTP/2, gRPC health and WebSocket on one port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use futures::{SinkExt as _, StreamExt as _};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use osm_e2e::report::RESPONDER_HEADER;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The address of the client of a request.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

/// What is served: `/status/<code>`, `/wait/<ms>`, `/websocket`, gRPC health, and an echo everywhere else.
pub(super) async fn router(name: &Arc<str>) -> Router {
    let (_, health) = tonic_health::server::health_reporter();
    let pod = Arc::clone(name);
    let responder = HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("unnamed"));
    Router::new()
        .route("/status/{code}", any(status))
        .route("/wait/{milliseconds}", any(wait))
        .route("/websocket", get(websocket))
        .route_service("/grpc.health.v1.Health/{method}", health)
        .fallback(move |query: Query<BTreeMap<String, String>>, request: Request| echo(pod, query, request))
        .layer(axum::middleware::map_response(move |mut response: Response| {
            let responder = responder.clone();
            async move {
                response.headers_mut().insert(RESPONDER_HEADER, responder);
                response
            }
        }))
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, router: Router) {
    super::accept(listener, move |stream, peer| {
        connection(stream, peer, router.clone())
    })
    .await;
}

/// Serves for ever, over TLS.
pub(super) async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    super::accept(listener, move |stream, peer| {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        async move {
            match acceptor.accept(stream).await {
                Ok(stream) => connection(stream, peer, router).await,
                Err(error) => super::log(format_args!("no TLS with {peer}: {error}")),
            }
        }
    })
    .await;
}

async fn connection<Stream>(stream: Stream, peer: SocketAddr, router: Router)
where
    Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = tower::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let mut router = router.clone();
        async move { tower::Service::call(&mut router, request.map(axum::body::Body::new)).await }
    });
    // How a connection ends is for the client to tell.
    let _ended = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
}

/// Says what arrived.
async fn echo(pod: Arc<str>, Query(query): Query<BTreeMap<String, String>>, request: Request) -> Json<Value> {
    let (head, body) = request.into_parts();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let body = axum::body::to_bytes(body, 1 << 20)
        .await
        .map(|body| body.len())
        .ok();
    Json(json!({
        "pod": &*pod,
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": query,
        "version": format!("{:?}", head.version),
        "peer": head.extensions.get::<Peer>().map(|peer| peer.0.to_string()),
        "headers": headers,
        "body_bytes": body,
    }))
}

async fn status(Path(code): Path<u16>) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST)
}

async fn wait(Path(milliseconds): Path<u64>) -> StatusCode {
    tokio::time::sleep(Duration::from_millis(milliseconds.min(60_000))).await;
    StatusCode::OK
}

/// Upgrades to a WebSocket that repeats what it hears.
async fn websocket(mut request: Request) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return StatusCode::UPGRADE_REQUIRED.into_response();
    };
    let accepted = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message
                && socket.send(Message::text(format!("echo: {text}"))).await.is_err()
            {
                return;
            }
        }
    });
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_ACCEPT, accepted.as_str()),
        ],
    )
        .into_response()
}
