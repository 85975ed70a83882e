//! The socket Envoy connects to.

use std::{
    convert::Infallible, fs, future::Future, io, os::unix::fs::FileTypeExt, path::Path, pin::Pin, sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, body::Body, server::Grpc, server::StreamingService};

use super::{DELTA, Relay, codec::Raw, stream};

/// Connections at once. Envoy has one, and another while it replaces it.
const CONNECTIONS: usize = 4;
/// Streams of a connection. Envoy has one.
const STREAMS: u32 = 4;
/// Largest request: names and versions of all that Envoy has of one kind.
const REQUEST_BYTES: usize = 16 << 20;
/// Responses that are ready before Envoy takes them.
const QUEUE: usize = 4;

/// Serves until it fails.
pub(super) async fn serve(socket: &Path, relay: &Arc<Relay>) -> Result<()> {
    let listener = listen(socket).with_context(|| format!("listening at {}", socket.display()))?;
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let relay = relay.clone();
                tokio::spawn(async move {
                    connection(stream, relay).await;
                    drop(permit);
                });
            }
            // Out of file descriptors, for instance: it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A socket in the place of what an earlier process has left.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(left) if left.file_type().is_socket() => fs::remove_file(path)?,
        _ => {}
    }
    UnixListener::bind(path)
}

async fn connection(stream: UnixStream, relay: Arc<Relay>) {
    let service = service_fn(move |request| answer(relay.clone(), request));
    // Envoy sees a broken connection itself, and opens another.
    let _ = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    relay: Arc<Relay>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    if request.uri().path() != DELTA {
        let status = Status::unimplemented("only the incremental aggregated discovery service is here");
        return Ok(status.into_http());
    }
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(REQUEST_BYTES);
    Ok(grpc.streaming(Method(relay), request).await)
}

struct Method(Arc<Relay>);

impl StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let relay = self.0.clone();
        Box::pin(async move {
            let (sender, responses) = mpsc::channel(QUEUE);
            tokio::spawn(async move { stream::serve(&relay, request.into_inner(), sender).await });
            Ok(Response::new(ReceiverStream::new(responses)))
        })
    }
}
