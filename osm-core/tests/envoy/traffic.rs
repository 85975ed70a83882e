//! What the resources do: requests and connections through two real sidecars, redirected as in a pod.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use osm_core::ir::{Endpoint, Forward, OutboundChain, Protocol, WeightedCluster};

use crate::{
    cases::{self, Sidecar},
    host::{NOBODY, SERVER, server_address},
    pair::{Authority, Pair, everything, trusting},
    resources::{Credentials, Resources},
};

/// A case, with its endpoints at the server's pod.
pub(crate) fn case(name: &str) -> Sidecar {
    let mut sidecar = cases::all().into_iter().find(|it| it.name == name).unwrap();
    for cluster in &mut sidecar.endpoints {
        cluster.endpoints.truncate(1);
        cluster.endpoints.iter_mut().for_each(|it| it.address = SERVER);
    }
    trusting(sidecar, "bookstore")
}

/// The lines of the head and the body of the next HTTP/1 request; nothing at the end of the stream.
pub(crate) fn next_request(reader: &mut impl BufRead) -> Option<(Vec<String>, Vec<u8>)> {
    let (mut head, mut length, mut chunked) = (vec![], 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        chunked |= line.eq_ignore_ascii_case("transfer-encoding: chunked\r\n");
        if line == "\r\n" {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let mut body = vec![];
    loop {
        if chunked {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            length = usize::from_str_radix(size.trim(), 16).ok()?;
        }
        let mut part = vec![0; length];
        reader.read_exact(&mut part).ok()?;
        body.append(&mut part);
        if chunked {
            // The end of the chunk's line.
            reader.read_exact(&mut [0; 2]).ok()?;
        }
        if !chunked || length == 0 {
            return Some((head, body));
        }
    }
}

/// Answers every HTTP/1 request with its head; an upgrade by echoing what comes.
pub(crate) fn http(stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some((head, _)) = next_request(&mut reader) {
        if head[0].starts_with("PRI * HTTP/2.0") {
            // Seen, and that is all: the connection ends here.
            return;
        }
        if head
            .iter()
            .any(|line| line.to_lowercase() == "upgrade: websocket")
        {
            let answer =
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
            writer.write_all(answer.as_bytes()).unwrap();
            drop(std::io::copy(&mut reader, &mut writer));
            return;
        }
        let text = head.join("\n");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn echo(stream: TcpStream) {
    drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
}

/// Speaks first, then echoes.
pub(crate) fn greet(stream: TcpStream) {
    drop((&stream).write_all(b"hello"));
    echo(stream);
}

#[test]
fn rules_decide_on_requests() {
    let authority = Authority::new();
    let client = case("http-client");
    let server = case("http-server");
    let bookstore = authority.workload("bookstore");
    let mut pair = Pair::new((&client, &authority.workload("bookbuyer")), (&server, &bookstore));
    let application = pair.application(14001, http);
    let books = "GET /books-bought\nuser-agent: a-http-client/1";

    // What a rule allows, the query being no part of the path.
    assert_eq!(pair.status(80, books), 200);
    assert_eq!(
        pair.status(80, "GET /books-bought?id=1\nuser-agent: a-http-client/1"),
        200
    );
    assert_eq!(pair.status(80, "POST /buy/a-book\ncontent-length: 0"), 200);
    // An escaped slash is passed on as it is where a rule speaks of it, and is nobody's concern in the query.
    let (status, text) = pair.request(80, "GET /projects/a%2Fb");
    assert_eq!(
        (status, text.contains("GET /projects/a%2Fb HTTP/1.1")),
        (200, true),
        "{text}"
    );
    assert_eq!(
        pair.status(80, "POST /buy/a-book?next=%2Fhome\ncontent-length: 0"),
        200
    );
    // What no rule is about: another method, header, path, or a path that only looks like one.
    for request in [
        "POST /books-bought\nuser-agent: a-http-client/1\ncontent-length: 0",
        "GET /books-bought\nuser-agent: curl",
        "GET /books-bought",
        "GET /buy/a-book",
        "GET /books-bought/more\nuser-agent: a-http-client/1",
        "POST /buy/../books-bought\ncontent-length: 0",
        "POST /buy/%2e%2e/books-bought\ncontent-length: 0",
        "POST /buy\\..\\books-bought\ncontent-length: 0",
    ] {
        assert_eq!(pair.status(80, request), 404, "{request}");
    }
    // What the application is given is what the rules were applied to.
    for path in [
        "/buy//../a-book",
        "/buy/./a-book",
        "//buy///a-book",
        "/x/../buy/a-book",
    ] {
        let (status, text) = pair.request(80, &format!("POST {path}\ncontent-length: 0"));
        assert_eq!(
            (status, text.contains("\r\n\r\nPOST /buy/a-book HTTP/1.1")),
            (200, true),
            "{path}: {text}"
        );
    }
    let reached = application.connections();
    // A slash that is not one until the application decodes it: no rule is about it but one that says so.
    for request in [
        "POST /buy/..%2fbooks-bought\ncontent-length: 0",
        "POST /buy/..%2Fbooks-bought?x=1\ncontent-length: 0",
        "POST /buy/..%5Cx\ncontent-length: 0",
        "POST /buy/..%5cx\ncontent-length: 0",
    ] {
        assert_eq!(pair.status(80, request), 404, "{request}");
    }
    // A rule that names others, a rule that names nobody, a host that is not the service's.
    assert_eq!(pair.status(80, "GET /nobody"), 403);
    assert_eq!(pair.status(80, "GET /books-bought\nhost: example.com"), 404);
    assert_eq!(
        application.connections(),
        reached,
        "nothing of this reached the application"
    );

    pair.replace_client(&client, &authority.workload("bookthief"));
    assert_eq!(pair.status(80, "POST /buy/a-book\ncontent-length: 0"), 200);
    assert_eq!(pair.status(80, books), 403);

    // Not even allowed to connect, or no workload at all.
    for stranger in [authority.workload("stranger"), authority.proxy("bookbuyer")] {
        let reached = application.connections();
        pair.replace_client(&client, &stranger);
        assert_eq!(pair.status(80, books), 503);
        assert_eq!(application.connections(), reached);
    }
    assert_eq!(pair.servers[0].statistic("runtime.deprecated_feature_use"), 0);
    assert_eq!(pair.client.statistic("runtime.deprecated_feature_use"), 0);
}

#[test]
fn without_rules_every_workload_is_served_as_it_asks() {
    let authority = Authority::new();
    let (client, server) = (case("http-client"), case("permissive-server"));
    let bookstore = authority.workload("bookstore");
    let mut pair = Pair::new((&client, &authority.workload("anyone")), (&server, &bookstore));
    let application = pair.application(14001, http);
    for path in ["/a/../b", "//c", "/d%2Fe", "/f?g"] {
        let (status, text) = pair.request(80, &format!("GET {path}"));
        assert_eq!(status, 200, "{path}");
        assert!(text.contains(&format!("GET {path} HTTP/1.1")), "{text}");
    }

    // A WebSocket, both ways.
    let mut stream = pair.connect(80);
    let upgrade =
        "GET /chat HTTP/1.1\r\nhost: bookstore\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    let mut stream = after_head(stream);
    stream.write_all(b"over").unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"over");

    // Plaintext from outside the mesh, and connections to ports that are not the service's.
    let reached = application.connections();
    for port in [14001, 9000, 4444] {
        let mut stream = pair.connect_to(SERVER, port);
        let request = b"GET / HTTP/1.1\r\nhost: bookstore\r\nconnection: close\r\n\r\n";
        drop(stream.write_all(request));
        assert_eq!(everything(&mut stream), "", "port {port}");
    }
    assert_eq!(application.connections(), reached);
    let refused = r#""response_flags":"NR""#;
    pair.servers[0].wait_until("log of refusals", |envoy| envoy.access_log().contains(refused));

    // A certificate of another mesh, and none at all.
    let foreign = Authority::new().workload("anyone");
    let foreign = Credentials {
        roots: bookstore.roots.clone(),
        ..foreign
    };
    pair.replace_client(&client, &foreign);
    assert_eq!(pair.status(80, "GET /"), 503);
    let mut anonymous = Resources::of(&client, &authority.workload("anyone"));
    let tls = &mut anonymous.clusters[0]["transportSocket"]["typedConfig"]["commonTlsContext"];
    tls.as_object_mut()
        .unwrap()
        .remove("tlsCertificateSdsSecretConfigs")
        .unwrap();
    pair.replace_client_with(&anonymous);
    assert_eq!(pair.status(80, "GET /"), 503);

    // An xDS client certificate is no workload's, here too.
    pair.replace_client(&client, &authority.proxy("anyone"));
    assert_eq!(pair.status(80, "GET /"), 503);

    // A server that is not who it should be.
    pair.replace_client(&trusting(client, "someone-else"), &authority.workload("anyone"));
    assert_eq!(pair.status(80, "GET /"), 503);
    assert_eq!(application.connections(), reached);
}

/// The stream past the blank line that ends a response's head.
fn after_head(mut stream: TcpStream) -> TcpStream {
    let (mut byte, mut end) = ([0], 0);
    while end < 4 {
        stream.read_exact(&mut byte).unwrap();
        end = if byte[0] == b"\r\n\r\n"[end] {
            end + 1
        } else {
            usize::from(byte[0] == b'\r')
        };
    }
    stream
}

#[test]
fn http2_stays_http2() {
    let authority = Authority::new();
    let (client, server) = (case("http-client"), case("permissive-server"));
    let bookstore = authority.workload("bookstore");
    let pair = Pair::new((&client, &authority.workload("anyone")), (&server, &bookstore));
    let _application = pair.application(14001, http);
    // The preface, empty settings, and the headers of one request with its end: POST http bookstore /a.B/C.
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let headers = b"\x83\x86\x44\x06/a.B/C\x41\x09bookstore";
    request.extend([0, 0, headers.len() as u8, 1, 5, 0, 0, 0, 1]);
    request.extend(headers);
    let mut stream = pair.connect(80);
    stream.write_all(&request).unwrap();
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while pair.servers[0].statistic("cluster.shop/bookstore|14001|local.upstream_cx_http2_total") == 0 {
        assert!(
            Instant::now() < deadline,
            "{}\n{}",
            pair.client.access_log(),
            pair.servers[0].access_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        pair.client
            .statistic("cluster.shop/bookstore|14001.upstream_cx_http1_total"),
        0
    );
}

#[test]
fn tcp_passes_at_once_whoever_speaks_first() {
    let authority = Authority::new();
    let mut client = case("tcp-client");
    let (server, bookstore) = (case("permissive-server"), authority.workload("bookstore"));
    let mut pair = Pair::new((&client, &authority.workload("anyone")), (&server, &bookstore));
    let _application = pair.application(9000, greet);
    let start = Instant::now();
    let mut stream = pair.connect(9000);
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    let mut stream = pair.connect(9000);
    stream.write_all(b"hi").unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hellohi");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    // Connections to what is not in the mesh are closed: there is no passthrough here.
    assert_eq!(everything(&mut pair.connect(9999)), "");

    // The service gets pods with another account, so that its cluster is replaced, and the connection stays. Then another
    // chain comes, and it stays, too; its own goes, and it ends with it.
    let credentials = authority.workload("anyone");
    client.upstreams[0]
        .servers
        .push(cases::principal("bookstore-next"));
    pair.replace_clusters(&client, &credentials);
    stream.write_all(b"still").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still");
    let mut more = client.clone();
    let chains = &mut more.outbound.as_mut().unwrap().chains;
    let cluster = client.upstreams[0].key.to_string();
    chains.push(OutboundChain {
        name: "another".into(),
        port: 9001,
        protocol: Protocol::Tcp,
        forward: Forward::Clusters(vec![WeightedCluster { cluster, weight: 1 }]),
        ..chains[0].clone()
    });
    pair.update_client(&more, &credentials);
    std::thread::sleep(Duration::from_secs(3));
    stream.write_all(b"still").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still");
    client.outbound = more.outbound;
    client.outbound.as_mut().unwrap().chains.remove(0);
    pair.update_client(&client, &credentials);
    assert_eq!(everything(&mut stream), "");
}

#[test]
fn tcp_access_is_decided_before_the_server_speaks() {
    let authority = Authority::new();
    let database = authority.workload("mysql");
    let mut client = case("tcp-client");
    // The client's service is the server's: same name, port and account.
    let server = case("tcp-server");
    let text = "shop/mysql";
    client = client.renamed(&cases::service("mysql"), 3306);
    let client = trusting(client, "mysql");
    let mut pair = Pair::new((&client, &authority.workload("bookstore")), (&server, &database));
    let application = pair.application(3306, greet);
    let mut stream = pair.connect(3306);
    let mut greeting = [0; 5];
    stream
        .read_exact(&mut greeting)
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!((&greeting, application.connections()), (b"hello", 1));
    for stranger in [authority.workload("stranger"), authority.proxy("bookstore")] {
        pair.replace_client(&client, &stranger);
        assert_eq!(everything(&mut pair.connect(3306)), "");
        assert_eq!(application.connections(), 1, "the application was never bothered");
    }
}

#[test]
fn requests_outlive_endpoints() {
    let authority = Authority::new();
    let mut client = case("http-client");
    let mut server = case("permissive-server");
    // Port 14002: a sidecar that runs, of an application that does not. Port 1: no such port. Then a dead node.
    server.add_port("bookstore", 14002, 14001);
    client.endpoints[0].endpoints = [(NOBODY, 14001), (SERVER, 1), (SERVER, 14001), (SERVER, 14002)]
        .map(|(address, port)| Endpoint { address, port })
        .into();
    let (anyone, bookstore) = (authority.workload("anyone"), authority.workload("bookstore"));
    let mut pair = Pair::new((&client, &anyone), (&server, &bookstore));
    let _application = pair.application(14001, http);
    for count in 0..40 {
        // Neither safe nor idempotent: retried only because none of it was sent.
        let (status, text) = pair.request(80, "POST /\ncontent-length: 0");
        assert_eq!(
            status,
            200,
            "request {count}: {text}\n{}",
            pair.client.access_log()
        );
    }
    let ejected = "outlier_detection.ejections_enforced_consecutive_local_origin_failure";
    let ejected = pair
        .client
        .statistic(&format!("cluster.shop/bookstore|14001.{ejected}"));
    assert!(ejected >= 2, "{ejected}: those that cannot be reached");

    // With no application left, the answer is 503, and says nothing of the mesh's own marks.
    client.endpoints[0].endpoints = vec![Endpoint {
        address: SERVER,
        port: 14002,
    }];
    pair.replace_client(&client, &anyone);
    let (status, text) = pair.request(80, "GET /");
    assert_eq!(status, 503);
    assert!(!text.contains("x-osm"), "{text}");
}

/// An application that ends while its sidecar lives, by a crash or for want of memory, costs no safe request; and one
/// request ends no more than two of them.
#[test]
fn a_safe_request_is_tried_once_more_when_an_application_dies() {
    let authority = Authority::new();
    let mut client = case("http-client");
    let mut server = case("permissive-server");
    server.add_port("bookstore", 14002, 14001);
    let endpoints = |ports: &[u16]| {
        ports
            .iter()
            .map(|&port| Endpoint {
                address: SERVER,
                port,
            })
            .collect()
    };
    client.endpoints[0].endpoints = endpoints(&[14001, 14002]);
    let (anyone, bookstore) = (authority.workload("anyone"), authority.workload("bookstore"));
    let mut pair = Pair::new((&client, &anyone), (&server, &bookstore));
    let _living = pair.application(14001, http);
    let dying = pair.application(14002, |stream| {
        next_request(&mut BufReader::new(stream));
    });
    for _ in 0..20 {
        // A client that counts attempts itself changes nothing.
        let (status, text) = pair.request(80, "GET /\nx-envoy-attempt-count: 7");
        assert_eq!(status, 200, "{text}\n{}", pair.client.access_log());
    }
    let reached = dying.connections();
    assert!(reached >= 5, "{reached} requests came to the one that dies");
    let posts: Vec<u16> = (0..10)
        .map(|_| pair.request(80, "POST /\ncontent-length: 0").0)
        .collect();
    let failed = posts.iter().filter(|status| **status == 503).count();
    assert_eq!(
        dying.connections() - reached,
        failed,
        "what may have been done is not done twice"
    );

    let reached = dying.connections();
    client.endpoints[0].endpoints = endpoints(&[14002]);
    pair.replace_client(&client, &anyone);
    let (status, text) = pair.request(80, "GET /");
    assert_eq!((status, dying.connections() - reached), (503, 2), "{text}");
    assert!(!text.contains("x-osm"), "{text}");
}

/// Pods are killed while requests are on their way; no controller is there to take their endpoints away.
#[test]
fn no_request_fails_when_pods_are_killed() {
    let authority = Authority::new();
    let mut client = case("http-client");
    let server = case("permissive-server");
    client.endpoints[0].endpoints = [0, 1, 2]
        .map(|index| Endpoint {
            address: server_address(index),
            port: 14001,
        })
        .into();
    let (anyone, bookstore) = (authority.workload("anyone"), authority.workload("bookstore"));
    let mut pair = Pair::with_servers(3, (&client, &anyone), (&server, &bookstore));
    let _application = pair.application(14001, |stream| {
        std::thread::sleep(Duration::from_millis(30));
        http(stream);
    });
    let mut dying: Vec<_> = pair.servers.drain(1..).collect();
    let (requests, failures) = (AtomicU32::new(0), Mutex::new(vec![]));
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while Instant::now() < end {
                    let (status, text) = pair.request(80, "GET /");
                    requests.fetch_add(1, Ordering::Relaxed);
                    if status != 200 {
                        failures.lock().unwrap().push(text);
                    }
                }
            });
        }
        for pod in &mut dying {
            std::thread::sleep(Duration::from_secs(1));
            pod.stop();
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {requests:?}: {}",
        failures.len(),
        failures[0]
    );
    assert!(requests.into_inner() > 100);
    let retried = pair
        .client
        .statistic("cluster.shop/bookstore|14001.upstream_rq_retry");
    assert_ne!(retried, 0, "the pods' death was felt");
}
