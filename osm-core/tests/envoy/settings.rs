//! What the settings of the mesh and the addresses of a pod do, through two real sidecars: external authorization,
//! tracing, active health checks, IPv6.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io::{BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Bytes, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use crate::{
    host::{Host, SERVER_IPV6, SERVICE_IPV6},
    pair::{Authority, Pair, everything},
    traffic::{case, greet, http, next_request},
};

fn listen(host: &Host, port: u16) -> TcpListener {
    host.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap())
}

/// A gRPC authorization server that denies requests with the header `x-deny`.
fn authorization_server(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let server = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(check)));
            }
        });
    });
}

/// `envoy.service.auth.v3.Authorization.Check`, as it is on the wire.
async fn check(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    let denied = asked.windows(6).any(|bytes| bytes == b"x-deny");
    // The length of the message, then a CheckResponse whose status is PERMISSION_DENIED (7), or OK: nothing at all.
    let message: &[u8] = if denied {
        &[0, 0, 0, 0, 4, 0x0a, 2, 8, 7]
    } else {
        &[0; 5]
    };
    let mut end = HeaderMap::new();
    end.insert("grpc-status", "0".parse().unwrap());
    let frames = [Frame::data(Bytes::from_static(message)), Frame::trailers(end)];
    let body = StreamBody::new(stream::iter(frames.map(Ok)));
    let answer = Response::builder().header("content-type", "application/grpc");
    Ok(answer.body(body).unwrap())
}

/// The spans that a sidecar has sent to its collector.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Value>>>);

impl Spans {
    fn collect(listener: TcpListener) -> Self {
        let spans = Self::default();
        let all = spans.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, spans) = (stream.unwrap(), spans.clone());
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some((head, body)) = next_request(&mut reader) {
                        assert!(head[0].starts_with("POST /api/v2/spans "), "{head:?}");
                        let sent: Vec<Value> = serde_json::from_slice(&body).unwrap();
                        spans.0.lock().unwrap().extend(sent);
                        drop(stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"));
                    }
                });
            }
        });
        all
    }

    fn traces(&self) -> BTreeSet<String> {
        let spans = self.0.lock().unwrap();
        spans
            .iter()
            .map(|span| span["traceId"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "no {what} within 20 s");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn requests_are_authorized_and_traced() {
    let authority = Authority::new();
    let sidecar = case("every-setting");
    let (buyer, store) = (authority.workload("bookbuyer"), authority.workload("bookstore"));
    let mut pair = Pair::new((&sidecar, &buyer), (&sidecar, &store));
    let application = pair.application(14001, http);
    let (client, server) = (pair.wire.client.clone(), pair.wire.servers[0].clone());
    let sent = [&client, &server].map(|host| Spans::collect(listen(host, 9411)));

    // Nobody is let in while the authorization server is not there: that is what the setting says.
    assert_eq!(pair.status(80, "GET /"), 403);
    assert_eq!(application.connections(), 0);
    authorization_server(listen(&server, 9191));
    wait_until("authorization", || pair.status(80, "GET /") == 200);
    let reached = application.connections();
    assert_eq!(pair.status(80, "GET /\nx-deny: please"), 403);
    assert_eq!(application.connections(), reached);

    // One trace goes through both sidecars and on to the application.
    for _ in 0..10 {
        let (status, text) = pair.request(80, "GET /");
        assert!(status == 200 && text.contains("x-b3-traceid: "), "{text}");
    }
    wait_until("common trace", || {
        let [client, server] = sent.each_ref().map(Spans::traces);
        !client.is_disjoint(&server)
    });

    let checks = "cluster.shop/bookstore|14001.health_check.success";
    pair.client
        .wait_until("health check", |envoy| envoy.statistic(checks) > 0);
}

#[test]
fn pods_with_ipv6_addresses_are_served_at_them() {
    if !Path::new("/proc/net/if_inet6").exists() {
        eprintln!("not tested: this kernel has no IPv6");
        return;
    }
    let authority = Authority::new();
    let (anyone, store) = (authority.workload("anyone"), authority.workload("bookstore"));
    let (mut client, mut server) = (case("tcp-client"), case("permissive-server"));
    server.inbound.as_mut().unwrap().ipv6 = true;
    client.outbound.as_mut().unwrap().chains[0]
        .addresses
        .push(SERVICE_IPV6);
    client.endpoints[0].endpoints[0].address = SERVER_IPV6;
    let mut pair = Pair::new((&client, &anyone), (&server, &store));
    pair.wire.add_ipv6();
    let application = pair.application(9000, greet);

    // The pod's addresses become known while its sidecar runs.
    client.outbound.as_mut().unwrap().ipv6 = true;
    pair.update_client(&client, &anyone);
    for _ in 0..2 {
        let mut stream = pair.connect_to(SERVICE_IPV6, 9000);
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"hello");
    }
    let mut stream = pair.connect(9000);
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!((&greeting, application.connections()), (b"hello", 3));

    // What is not of the mesh is refused here, too.
    let mut stream = pair.connect_to(SERVER_IPV6, 9000);
    drop(stream.write_all(b"hi"));
    assert_eq!(everything(&mut stream), "");
    assert_eq!(application.connections(), 3);
}
