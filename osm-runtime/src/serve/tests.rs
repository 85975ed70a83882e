//! Real TLS over loopback.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use osm_core::{
    certificate::{Certificate, Profile, TrustBundle, proxy_of},
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    issuer::{Authority, KeyKind, Leaf, LeafRequest},
    tls::{self, ClientRoots, ServerCertificate},
};

fn authority() -> Authority {
    let now = Timestamp::now();
    Authority::load(&Authority::generate(KeyKind::P256, now).unwrap(), now).unwrap()
}

fn sign(authority: &Authority, profile: Profile) -> Leaf {
    let request = LeafRequest::new(profile, Duration::from_secs(3_600));
    authority.sign(&request, Timestamp::now()).unwrap()
}

fn proxy() -> ProxyIdentity {
    ProxyIdentity {
        uuid: "6a1e9e6b-0000-4000-8000-00000000000f".parse().unwrap(),
        service: ServiceIdentity::new("ns", "sa"),
    }
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

struct Server {
    address: SocketAddr,
    certificate: ServerCertificate,
    roots: ClientRoots,
    drain: CancellationToken,
    done: JoinHandle<()>,
}

/// A server that demands client certificates and answers with the common name of the client's; `/panic`, `/slow` and
/// `/until-leaving` do as they say.
async fn start(authority: &Authority, limits: Limits) -> Server {
    start_with(authority, limits, None).await
}

async fn start_with(authority: &Authority, limits: Limits, seats: Option<Seats>) -> Server {
    let (certificate, roots, drain) = (
        ServerCertificate::new(),
        ClientRoots::new(),
        CancellationToken::new(),
    );
    certificate
        .set(&sign(authority, Profile::ads(&domain())))
        .unwrap();
    roots.set(&TrustBundle::new([authority.root().clone()])).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = Settings {
        name: "test",
        limits,
        metrics: ServeMetrics::default(),
        drain: drain.clone(),
        seats,
    };
    let handler = tower::service_fn(|request: Request<Incoming>| async move {
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        drop(peer.seat());
        match request.uri().path() {
            "/panic" => panic!("as asked"),
            "/slow" => sleep(Duration::from_millis(800)).await,
            "/until-leaving" => peer.leaving.cancelled().await,
            "/forever" => std::future::pending().await,
            _ => {}
        }
        let proxy = proxy_of(&peer.certificates[0], &domain()).map(|proxy| proxy.to_string());
        let body = proxy.unwrap_or_else(|error| error.to_string());
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(body))))
    });
    let tls = tls::ads(&certificate, &roots).unwrap();
    let done = tokio::spawn(serve_mutual_tls(listener, tls, roots.clone(), settings, handler));
    Server {
        address,
        certificate,
        roots,
        drain,
        done,
    }
}

/// Long, because the machine may be busy; what a test waits for it shortens itself.
fn limits() -> Limits {
    let long = Duration::from_secs(30);
    Limits {
        handshake: long,
        head: long,
        leave_over: long / 1_000,
        grace: long / 10,
        ..Limits::ads()
    }
}

fn config(trusted: &Authority, leaf: Option<&Leaf>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.root().der().to_vec().into()).unwrap();
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let chain = leaf.chain_der().iter().cloned().map(Into::into).collect();
            builder.with_client_auth_cert(chain, leaf.key_der()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn connect(server: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server).await?;
    let name = ServerName::try_from("ads.cluster.local").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The certificate (DER) that the server showed.
fn presented(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn open(server: SocketAddr, config: ClientConfig) -> Result<Sender, BoxError> {
    let stream = connect(server, config).await?;
    let executor = TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn get(sender: &mut Sender, path: &str) -> Result<String, BoxError> {
    sender.ready().await?;
    let request = Request::get(format!("https://ads.cluster.local{path}")).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    Ok(String::from_utf8(
        response.into_body().collect().await?.to_bytes().to_vec(),
    )?)
}

async fn ask(server: SocketAddr, config: ClientConfig) -> Result<String, BoxError> {
    get(&mut open(server, config).await?, "/").await
}

#[tokio::test]
async fn only_clients_of_the_roots_are_served_and_the_handler_knows_them() {
    let (ours, other) = (authority(), authority());
    let server = start(&ours, limits()).await;
    let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
    assert_eq!(
        ask(server.address, config(&ours, Some(&good))).await.unwrap(),
        proxy().to_string()
    );

    let past = Timestamp::now() - SignedDuration::from_hours(2);
    let old = Authority::load(&Authority::generate(KeyKind::P256, past).unwrap(), past).unwrap();
    let request = LeafRequest::new(Profile::proxy(&proxy(), &domain()), Duration::from_secs(60));
    let expired = old.sign(&request, past).unwrap();
    server
        .roots
        .set(&TrustBundle::new([ours.root().clone(), old.root().clone()]))
        .unwrap();
    let wrong_root = sign(&other, Profile::proxy(&proxy(), &domain()));
    let not_a_client = sign(&ours, Profile::ads(&domain()));
    for refused in [None, Some(&wrong_root), Some(&expired), Some(&not_a_client)] {
        assert!(ask(server.address, config(&ours, refused)).await.is_err());
    }
    // A workload's certificate is good for TLS, but names no proxy: the handler tells.
    let workload = sign(&ours, Profile::service(&proxy().service, &domain()));
    let answer = ask(server.address, config(&ours, Some(&workload))).await.unwrap();
    assert!(answer.contains("not a sidecar's"), "{answer}");
    let mut without_alpn = config(&ours, Some(&good));
    without_alpn.alpn_protocols.clear();
    assert!(
        ask(server.address, without_alpn).await.is_ok(),
        "HTTP/2 is taken for granted"
    );
    // The client checks the server too.
    assert!(ask(server.address, config(&other, Some(&good))).await.is_err());
    assert_eq!(
        ask(server.address, config(&ours, Some(&good))).await.unwrap(),
        proxy().to_string()
    );
}

#[tokio::test]
async fn certificates_and_roots_change_while_connections_stay() {
    let (first, second) = (authority(), authority());
    let server = start(&first, limits()).await;
    let old = sign(&first, Profile::proxy(&proxy(), &domain()));
    let new = sign(&second, Profile::proxy(&proxy(), &domain()));
    let mut kept = open(server.address, config(&first, Some(&old))).await.unwrap();
    get(&mut kept, "/").await.unwrap();

    // Remembers its session, and would resume it.
    let rememberer = config(&first, Some(&old));
    ask(server.address, rememberer.clone()).await.unwrap();

    let stream = connect(server.address, config(&first, Some(&old))).await.unwrap();
    // Clients of gRPC do not speak to a server that leaves it open.
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(tls::H2));
    let before = presented(&stream);
    server
        .certificate
        .set(&sign(&second, Profile::ads(&domain())))
        .unwrap();
    server
        .roots
        .set(&TrustBundle::new([second.root().clone()]))
        .unwrap();
    server
        .certificate
        .set(&sign(&first, Profile::ads(&domain())))
        .unwrap();
    assert!(
        ask(server.address, rememberer).await.is_err(),
        "no session outlives the roots it was verified by"
    );
    server
        .certificate
        .set(&sign(&second, Profile::ads(&domain())))
        .unwrap();
    let after = presented(
        &connect(server.address, config(&second, Some(&new)))
            .await
            .unwrap(),
    );
    assert_ne!(before, after);
    assert_eq!(
        Certificate::from_der(&after).unwrap().dns_names,
        ["ads.cluster.local"]
    );

    assert!(ask(server.address, config(&second, Some(&new))).await.is_ok());
    assert!(
        ask(server.address, config(&second, Some(&old))).await.is_err(),
        "the old root is out"
    );
    assert!(get(&mut kept, "/").await.is_ok(), "established connections stay");
    server.roots.set(&TrustBundle::default()).unwrap();
    assert!(
        ask(server.address, config(&second, Some(&new))).await.is_err(),
        "no roots: nobody"
    );
}

/// As the API server calls it: without a certificate of its own, trusting the bundle of the webhook's configuration.
#[tokio::test]
async fn a_webhook_changes_its_certificate_and_its_root_while_connections_stay() {
    let (first, second) = (authority(), authority());
    let (certificate, drain) = (ServerCertificate::new(), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = Settings {
        name: "webhook",
        limits: Limits {
            max_age: None,
            ..Limits::webhook()
        },
        metrics: ServeMetrics::default(),
        drain: drain.clone(),
        seats: None,
    };
    let pages = axum::Router::new().route("/", axum::routing::get(async || "reviewed"));
    let config_of_server = tls::webhook(&certificate).unwrap();
    tokio::spawn(serve_tls(listener, config_of_server, settings, pages));
    assert!(
        ask(address, config(&first, None)).await.is_err(),
        "there is no certificate yet"
    );

    let leaf = |authority: &Authority| sign(authority, Profile::ads(&domain()));
    certificate.set(&leaf(&first)).unwrap();
    let mut kept = open(address, config(&first, None)).await.unwrap();
    assert_eq!(get(&mut kept, "/").await.unwrap(), "reviewed");
    let before = presented(&connect(address, config(&first, None)).await.unwrap());

    // Renewed under the same root.
    certificate.set(&leaf(&first)).unwrap();
    let renewed = presented(&connect(address, config(&first, None)).await.unwrap());
    assert_ne!(before, renewed);
    assert!(get(&mut kept, "/").await.is_ok(), "established connections stay");

    // And under another: only who trusts that one is answered.
    certificate.set(&leaf(&second)).unwrap();
    assert_eq!(ask(address, config(&second, None)).await.unwrap(), "reviewed");
    assert!(ask(address, config(&first, None)).await.is_err());
    assert!(get(&mut kept, "/").await.is_ok(), "established connections stay");
    drain.cancel();
}

#[tokio::test]
async fn a_leaf_with_another_key_does_not_replace_a_good_one() {
    let ours = authority();
    let server = start(&ours, limits()).await;
    let (one, two) = (
        sign(&ours, Profile::ads(&domain())),
        sign(&ours, Profile::ads(&domain())),
    );
    let mixed = Leaf::from_pem(one.chain_pem(), &two.key_pem()).unwrap();
    assert!(server.certificate.set(&mixed).is_err());
    let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
    assert!(ask(server.address, config(&ours, Some(&good))).await.is_ok());
}

/// Reads until the other end closes; how long that took.
async fn closed_after(stream: &mut (impl AsyncRead + Unpin)) -> Duration {
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest))
        .await
        .expect("closed");
    begun.elapsed()
}

#[tokio::test]
async fn those_who_say_nothing_are_dropped() {
    let ours = authority();
    let limit = Duration::from_secs(2);
    let server = start(
        &ours,
        Limits {
            handshake: limit,
            head: limit,
            ..limits()
        },
    )
    .await;
    let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut wordless = connect(server.address, config(&ours, Some(&good))).await.unwrap();
    // Whoever has asked something may stay.
    let mut kept = open(server.address, config(&ours, Some(&good))).await.unwrap();
    get(&mut kept, "/").await.unwrap();
    let (first, _) = tokio::join!(closed_after(&mut silent), closed_after(&mut wordless));
    assert!(first < limit * 5, "{first:?}");
    sleep(limit).await;
    assert!(get(&mut kept, "/").await.is_ok());
}

#[tokio::test]
async fn who_has_proved_itself_waits_for_a_seat_and_who_has_not_holds_none() {
    let ours = authority();
    let patience = Duration::from_secs(2);
    let seats = Seats::new(1, patience);
    let server = start_with(&ours, limits(), Some(seats.clone())).await;
    let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
    let client = async || open(server.address, config(&ours, Some(&good))).await.unwrap();
    let stranger = TcpStream::connect(server.address).await.unwrap();
    // It has a seat until it has asked something.
    let mut first = client().await;
    let mut second = client().await;
    assert!(
        timeout(patience / 4, get(&mut second, "/")).await.is_err(),
        "it waits"
    );
    get(&mut first, "/").await.unwrap();
    get(&mut second, "/").await.unwrap();
    let holds = client().await;
    let mut third = client().await;
    let begun = Instant::now();
    assert!(
        get(&mut third, "/").await.is_err(),
        "it is let go when patience is over"
    );
    assert!(begun.elapsed() > patience / 2);
    assert!(
        get(&mut second, "/").await.is_ok(),
        "who is served already needs none"
    );
    drop(holds);
    let _held = seats.take().await.unwrap();
    let _waits = client().await;
    drop(stranger);
    server.drain.cancel();
    timeout(patience / 2, server.done)
        .await
        .expect("nobody waits when it drains")
        .unwrap();
}

#[tokio::test]
async fn connections_are_capped_and_a_panic_ends_one_request_only() {
    let ours = authority();
    let server = start(
        &ours,
        Limits {
            connections: 2,
            ..limits()
        },
    )
    .await;
    let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
    let mut one = open(server.address, config(&ours, Some(&good))).await.unwrap();
    let mut two = open(server.address, config(&ours, Some(&good))).await.unwrap();
    get(&mut one, "/").await.unwrap();
    get(&mut two, "/").await.unwrap();
    assert!(ask(server.address, config(&ours, Some(&good))).await.is_err());
    assert!(get(&mut one, "/panic").await.is_err());
    assert!(
        get(&mut one, "/").await.is_ok(),
        "nor is the connection itself hurt"
    );
    assert!(get(&mut two, "/").await.is_ok());
    drop(one);
    sleep(Duration::from_millis(200)).await;
    assert!(
        ask(server.address, config(&ours, Some(&good))).await.is_ok(),
        "its place is free again"
    );
}

#[tokio::test]
async fn draining_finishes_what_was_begun_and_cuts_what_will_not_end() {
    let ours = authority();
    let server = start(&ours, limits()).await;
    let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
    let mut senders = Vec::new();
    for _ in 0..3 {
        senders.push(open(server.address, config(&ours, Some(&good))).await.unwrap());
    }
    let drain = server.drain.clone();
    let requests = senders
        .iter_mut()
        .zip(["/slow", "/until-leaving", "/forever"])
        .map(|(sender, path)| get(sender, path));
    let (answers, ()) = tokio::join!(futures::future::join_all(requests), async {
        sleep(Duration::from_millis(100)).await;
        drain.cancel();
        sleep(Duration::from_millis(50)).await;
        assert!(
            TcpStream::connect(server.address).await.is_err(),
            "nothing new is accepted"
        );
    });
    assert!(answers[0].is_ok() && answers[1].is_ok());
    assert!(answers[2].is_err());
    timeout(Duration::from_secs(60), server.done)
        .await
        .expect("drained")
        .unwrap();
}

#[test]
fn pods_are_reached_at_all_their_addresses() {
    for (pod, any) in [
        ("10.1.0.7", "0.0.0.0"),
        ("fd00::7", "::"),
        ("", "0.0.0.0"),
        ("nonsense", "0.0.0.0"),
    ] {
        assert_eq!(any_address(pod).to_string(), any, "{pod:?}");
    }
}

#[tokio::test]
async fn a_client_whose_root_is_removed_is_let_go() {
    let (ours, other) = (authority(), authority());
    let limits = Limits {
        proof: Duration::from_millis(20),
        ..limits()
    };
    let server = start(&ours, limits).await;
    let leaf = sign(&ours, Profile::proxy(&proxy(), &domain()));
    let mut sender = open(server.address, config(&ours, Some(&leaf))).await.unwrap();
    let waiting = tokio::spawn(async move { get(&mut sender, "/until-leaving").await.map(|_| sender) });
    // As long as it is trusted it stays.
    sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    server
        .roots
        .set(&TrustBundle::new([other.root().clone()]))
        .unwrap();
    let long = Duration::from_secs(10);
    let sender = timeout(long, waiting)
        .await
        .expect("asked to go")
        .unwrap()
        .unwrap();
    let gone = async {
        while !sender.is_closed() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(long, gone).await.expect("and gone");
}

#[tokio::test]
async fn a_client_whose_certificate_expires_is_let_go() {
    let ours = authority();
    let server = start(&ours, limits()).await;
    let request = LeafRequest::new(Profile::proxy(&proxy(), &domain()), Duration::from_secs(3));
    let leaf = ours.sign(&request, Timestamp::now()).unwrap();
    let mut sender = open(server.address, config(&ours, Some(&leaf))).await.unwrap();
    let begun = Instant::now();
    timeout(Duration::from_secs(20), get(&mut sender, "/until-leaving"))
        .await
        .expect("asked to go")
        .unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1), "not before");
}

#[tokio::test]
async fn streams_are_served_in_tasks_of_their_own_and_within_the_connections() {
    let ours = authority();
    for within in [false, true] {
        let server = start(&ours, Limits { within, ..limits() }).await;
        let good = sign(&ours, Profile::proxy(&proxy(), &domain()));
        let mut sender = open(server.address, config(&ours, Some(&good))).await.unwrap();
        let mut other = sender.clone();
        // One that waits does not hold up another of the same connection.
        let waiting = tokio::spawn(async move { get(&mut other, "/until-leaving").await.is_ok() });
        for _ in 0..3 {
            get(&mut sender, "/").await.unwrap();
        }
        assert!(get(&mut sender, "/panic").await.is_err());
        assert!(get(&mut sender, "/").await.is_ok());
        server.drain.cancel();
        assert!(waiting.await.unwrap());
    }
}
