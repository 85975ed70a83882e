use std::{
    convert::Infallible,
    io::{Read, Write},
    sync::mpsc,
};

use ::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

/// A helper at a port of its own.
fn helper(allowed_ports: Vec<u16>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    serve(listener, Prober::new(None, allowed_ports)).expect("threads");
    address
}

/// Sends raw bytes and returns the status and the body of the answer.
fn send(helper: SocketAddr, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(helper).expect("connects");
    stream.write_all(request).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a status");
    (
        status,
        answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned(),
    )
}

fn get(helper: SocketAddr, headers: &[(&str, &str)]) -> (u16, String) {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    send(
        helper,
        format!("GET /osm-healthcheck HTTP/1.1\r\nHost: pod\r\n{headers}\r\n").as_bytes(),
    )
}

fn closed_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port()
}

/// A gRPC server whose health service answers by the name of the service asked for.
fn grpc_server() -> u16 {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a port");
            sender
                .send(listener.local_addr().expect("bound").port())
                .expect("awaited");
            while let Ok((stream, _)) = listener.accept().await {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(health));
                tokio::spawn(connection);
            }
        });
    });
    receiver.recv().expect("listening")
}

async fn health(
    request: ::http::Request<Incoming>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(usize::from(body[4]), body.len() - 5, "the length of the message");
    let service = body
        .get(7..)
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .unwrap_or_default();
    let message: Option<&'static [u8]> = match service.as_str() {
        "" | "up" => Some(&[0, 0, 0, 0, 2, 0x08, 1]),
        "down" => Some(&[0, 0, 0, 0, 2, 0x08, 2]),
        "empty" => Some(&[0, 0, 0, 0, 0]),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            None
        }
        _ => None,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert(
        "grpc-status",
        HeaderValue::from_static(if message.is_some() { "0" } else { "5" }),
    );
    let frames: Vec<Result<Frame<Bytes>, Infallible>> = message
        .map(|message| Ok(Frame::data(Bytes::from_static(message))))
        .into_iter()
        .chain([Ok(Frame::trailers(trailers))])
        .collect();
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .expect("a response"))
}

#[test]
fn tcp_ports_are_asked() {
    let helper = helper(vec![]);
    let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = open.local_addr().expect("bound").port().to_string();
    assert_eq!(get(helper, &[("original-tcp-port", &port)]).0, 200);
    assert_eq!(
        get(helper, &[("Original-Tcp-Port", &closed_port().to_string())]).0,
        404
    );
}

#[test]
fn grpc_servers_are_asked_for_the_service() {
    let helper = helper(vec![]);
    let port = grpc_server().to_string();
    let check = |service: &str| {
        get(
            helper,
            &[("Original-Grpc-Port", &port), ("Original-Grpc-Service", service)],
        )
    };
    assert_eq!(
        get(helper, &[("Original-Grpc-Port", &port)]),
        (200, "SERVING".to_owned())
    );
    assert_eq!(check("up").0, 200);
    for (service, problem) in [
        ("down", "NOT_SERVING"),
        ("empty", "UNKNOWN"),
        ("other", "without an answer"),
    ] {
        let (status, body) = check(service);
        assert_eq!(status, 503, "{service}");
        assert!(body.contains(problem), "{body}");
    }
    let started = Instant::now();
    assert_eq!(check("slow").0, 503);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the probe's timeout is one second"
    );
}

#[test]
fn what_is_no_grpc_server_is_not_healthy_and_does_not_hang() {
    let helper = helper(vec![]);
    let behaviours: [fn(TcpStream); 5] = [
        drop,
        |mut stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        |mut stream| drop(stream.write_all(&[0xff; 64])),
        |mut stream| drop(stream.write_all(&[0; 9 * 200])),
        |stream| {
            thread::sleep(Duration::from_secs(3));
            drop(stream);
        },
    ];
    for behave in behaviours {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port().to_string();
        thread::spawn(move || behave(listener.accept().expect("a connection").0));
        let started = Instant::now();
        assert_eq!(get(helper, &[("Original-Grpc-Port", &port)]).0, 503);
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn bad_requests_are_answered_and_forgotten() {
    let helper = helper(vec![]);
    assert_eq!(get(helper, &[]).0, 400);
    for port in ["0", "65536", "-1", "http", ""] {
        assert_eq!(get(helper, &[("Original-Tcp-Port", port)]).0, 400, "{port}");
    }
    assert_eq!(send(helper, b"GET / HTTP/1.1\r\n\r\n").0, 404);
    for garbage in [
        &b"\r\n\r\n"[..],
        b"POST /osm-healthcheck HTTP/1.1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        assert_eq!(send(helper, garbage).0, 400);
    }
    let long = [
        b"GET /osm-healthcheck HTTP/1.1\r\nX: ".as_slice(),
        &[b'x'; 20_000],
    ]
    .concat();
    assert_eq!(send(helper, &long).0, 431);
}

#[test]
fn only_the_ports_of_probes_are_asked() {
    let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = open.local_addr().expect("bound").port();
    let other = closed_port().to_string();
    let helper = helper(vec![port]);
    assert_eq!(get(helper, &[("Original-Tcp-Port", &port.to_string())]).0, 200);
    assert_eq!(get(helper, &[("Original-Tcp-Port", &other)]).0, 403);
    assert_eq!(get(helper, &[("Original-Grpc-Port", &other)]).0, 403);
}

#[test]
fn slow_clients_do_not_keep_others_waiting() {
    let helper = helper(vec![]);
    let idle: Vec<TcpStream> = (0..WORKERS - 1)
        .map(|_| TcpStream::connect(helper).expect("connects"))
        .collect();
    let started = Instant::now();
    assert_eq!(
        get(helper, &[("Original-Tcp-Port", &closed_port().to_string())]).0,
        404
    );
    assert!(started.elapsed() < PATIENCE);
    drop(idle);
}
