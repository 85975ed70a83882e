//! Who is not served, and with what they are refused.

use std::time::Duration;

use osm_controller::{ads::Settings, mesh::Mesh};
use osm_core::{
    certificate::{Profile, TrustBundle, Usage},
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
    resource::ResourceType,
};
use osm_proto::envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest};
use osm_runtime::{issuer::Leaf, serve::Seats};
use tonic::Code;
use uuid::Uuid;

use crate::{
    client::{Channel, connect, delta},
    server::{Pki, Server, proxy},
    shop::Shop,
};

async fn code(server: &Server, roots: &TrustBundle, leaf: &Leaf) -> Code {
    let channel = Channel::open(server.address, roots, Some(leaf)).await.unwrap();
    match delta(&channel).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

fn published() -> Shop {
    let mut shop = Shop::new(&[proxy(1)]);
    shop.clusters(&["a"], "1").publish();
    shop
}

#[tokio::test]
async fn without_a_certificate_of_this_mesh_there_is_no_stream() {
    let (pki, other) = (Pki::new(), Pki::new());
    let shop = published();
    let server = Server::start(&pki, &shop.mesh).await;
    let roots = pki.roots();
    // TLS 1.3 tells a client about its certificate only after the handshake: the first read fails.
    for leaf in [None, Some(other.sidecar(&proxy(1)).await)] {
        let channel = Channel::open(server.address, &roots, leaf.as_ref()).await;
        let refused = match channel {
            Err(_) => true,
            Ok(channel) => delta(&channel).await.is_err(),
        };
        assert!(refused);
    }
    assert!(server.ads.registry().is_empty());
    assert_eq!(
        code(&server, &roots, &pki.sidecar(&proxy(1)).await).await,
        Code::Ok
    );
}

#[tokio::test]
async fn certificates_of_other_kinds_name_no_proxy() {
    let pki = Pki::new();
    let shop = published();
    let server = Server::start(&pki, &shop.mesh).await;
    let domain = TrustDomain::default();
    let named = |common_name: &str| Profile {
        common_name: common_name.to_owned(),
        dns_names: vec![],
        uris: vec![],
        usage: Usage::Client,
    };
    let uuid = proxy(1).uuid;
    let mut with_name = Profile::proxy(&proxy(1), &domain);
    with_name.dns_names.push("buyer.shop.cluster.local".into());
    for profile in [
        Profile::service(&proxy(1).service, &domain),
        with_name,
        named("buyer.shop.cluster.local"),
        named(&format!("{uuid}.sidecar.buyer.shop.other.domain")),
        named(&format!("{uuid}.gateway.buyer.shop.cluster.local")),
        named(&format!("{}.sidecar.buyer.shop.cluster.local", uuid.simple())),
        named(&format!("{uuid}.sidecar..shop.cluster.local")),
        named(&format!("{uuid}.sidecar.buyer\n.shop.cluster.local")),
        named("not-a-uuid.sidecar.buyer.shop.cluster.local"),
    ] {
        let leaf = pki.leaf(profile.clone()).await;
        let code = code(&server, &pki.roots(), &leaf).await;
        assert_eq!(code, Code::Unauthenticated, "{profile:?}");
    }
    assert!(server.ads.registry().is_empty());
}

#[tokio::test]
async fn a_proxy_without_its_pod_is_refused_and_one_that_is_early_waits() {
    let pki = Pki::new();
    let mut shop = published();
    let settings = Settings {
        pod_wait: Duration::from_secs(10),
        ..Settings::default()
    };
    let patient = Server::start_with(&pki, &shop.mesh, settings).await;
    let strict = Server::start(&pki, &shop.mesh).await;
    // Another uuid; the same uuid under another service account or namespace.
    let stranger = |uuid, namespace: &str, account: &str| ProxyIdentity {
        uuid: Uuid::from_u128(uuid),
        service: ServiceIdentity::new(namespace, account),
    };
    for proxy in [
        stranger(9, "shop", "buyer"),
        stranger(1, "shop", "thief"),
        stranger(1, "other", "buyer"),
    ] {
        let leaf = pki.sidecar(&proxy).await;
        assert_eq!(
            code(&strict, &pki.roots(), &leaf).await,
            Code::PermissionDenied,
            "{proxy}"
        );
    }
    let (roots, leaf) = (pki.roots(), pki.sidecar(&proxy(1)).await);
    shop.remove_proxy(&proxy(1)).publish();
    let early = tokio::spawn({
        let address = patient.address;
        async move {
            let channel = Channel::open(address, &roots, Some(&leaf)).await.unwrap();
            delta(&channel).await.map(|_| ()).map_err(|status| status.code())
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut late = Shop::new(&[proxy(1)]);
    late.mesh = shop.mesh.clone();
    late.clusters(&["a"], "1").publish();
    assert_eq!(early.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn who_waits_for_its_pod_holds_no_seat() {
    let pki = Pki::new();
    let shop = published();
    let settings = Settings {
        pod_wait: Duration::from_secs(30),
        seats: Seats::new(1, Duration::from_secs(5)),
        ..Settings::default()
    };
    let server = Server::start_with(&pki, &shop.mesh, settings).await;
    let leaf = pki.sidecar(&proxy(9)).await;
    let early = Channel::open(server.address, &pki.roots(), Some(&leaf))
        .await
        .unwrap();
    let early = tokio::spawn(async move { delta(&early).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let known = pki.sidecar(&proxy(1)).await;
    assert_eq!(code(&server, &pki.roots(), &known).await, Code::Ok);
    assert!(!early.is_finished());
}

#[tokio::test]
async fn nobody_is_served_before_the_mesh_is_known() {
    let pki = Pki::new();
    let server = Server::start(&pki, &Mesh::new()).await;
    let leaf = pki.sidecar(&proxy(1)).await;
    assert_eq!(code(&server, &pki.roots(), &leaf).await, Code::Unavailable);
}

#[tokio::test]
async fn a_storm_is_let_in_at_the_rate_and_told_when_to_come_back() {
    let pki = Pki::new();
    let proxies: Vec<_> = (1..=30).map(proxy).collect();
    let mut shop = Shop::new(&proxies);
    shop.clusters(&["a"], "1").publish();
    let settings = Settings {
        new_streams_per_second: 5,
        admission_wait: Duration::from_millis(500),
        ..Settings::default()
    };
    let server = Server::start_with(&pki, &shop.mesh, settings).await;
    let attempts = proxies.iter().map(async |proxy| {
        let leaf = pki.sidecar(proxy).await;
        let channel = Channel::open(server.address, &pki.roots(), Some(&leaf))
            .await
            .unwrap();
        delta(&channel).await.map(|stream| (channel, stream))
    });
    let results = futures::future::join_all(attempts).await;
    let refused: Vec<_> = results
        .iter()
        .filter_map(|result| result.as_ref().err())
        .collect();
    assert!(
        (15..29).contains(&refused.len()),
        "{} were refused",
        refused.len()
    );
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    // They were told to come back, and are let in then.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(
        code(&server, &pki.roots(), &pki.sidecar(&proxies[29]).await).await,
        Code::Ok
    );
}

#[tokio::test]
async fn what_a_request_may_hold_is_bounded() {
    let pki = Pki::new();
    let shop = published();
    let server = Server::start(&pki, &shop.mesh).await;
    let leaf = pki.sidecar(&proxy(1)).await;
    let refusal = async |request: DeltaDiscoveryRequest| {
        let channel = Channel::open(server.address, &pki.roots(), Some(&leaf))
            .await
            .unwrap();
        let mut stream = delta(&channel).await.unwrap();
        stream.requests.send(request).await.unwrap();
        stream
            .next()
            .await
            .map(|response| response.is_some())
            .map_err(|status| status.code())
    };
    let of = |kind: ResourceType| DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        ..Default::default()
    };
    assert_eq!(
        refusal(DeltaDiscoveryRequest::default()).await,
        Err(Code::InvalidArgument)
    );
    let long = vec!["x".repeat(1 << 20)];
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: long,
        ..of(ResourceType::Route)
    };
    assert_eq!(refusal(request).await, Err(Code::InvalidArgument));
    let many = (0..1_000_000).map(|index| format!("n{index}")).collect();
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: many,
        ..of(ResourceType::Route)
    };
    assert_eq!(refusal(request).await, Err(Code::ResourceExhausted));
    let node = Node {
        id: "x".repeat(20 << 20),
        ..Default::default()
    };
    let request = DeltaDiscoveryRequest {
        node: Some(node),
        ..of(ResourceType::Cluster)
    };
    assert_eq!(refusal(request).await, Err(Code::ResourceExhausted));
    // An unknown type is nobody's fault, and a node of another proxy changes nothing.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let channel = Channel::open(server.address, &pki.roots(), Some(&leaf))
        .await
        .unwrap();
    let mut stream = delta(&channel).await.unwrap();
    let unknown = DeltaDiscoveryRequest {
        type_url: "x".repeat(1 << 20),
        ..Default::default()
    };
    stream.requests.send(unknown).await.unwrap();
    assert!(stream.is_quiet().await);
    let node = Node {
        id: proxy(2).uuid.to_string(),
        ..Default::default()
    };
    stream
        .requests
        .send(DeltaDiscoveryRequest {
            node: Some(node),
            ..of(ResourceType::Cluster)
        })
        .await
        .unwrap();
    assert_eq!(stream.take().await, ["+a"]);
}

#[tokio::test]
async fn half_a_handshake_and_silence_cost_a_bounded_time() {
    let pki = Pki::new();
    let shop = published();
    let server = Server::start(&pki, &shop.mesh).await;
    let leaf = pki.sidecar(&proxy(1)).await;
    let half = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let silent = connect(server.address, &pki.roots(), Some(&leaf)).await.unwrap();
    let closed = async |mut stream: Box<dyn tokio::io::AsyncRead + Unpin + Send>| {
        use tokio::io::AsyncReadExt;
        let mut bytes = Vec::new();
        tokio::time::timeout(Duration::from_secs(6), stream.read_to_end(&mut bytes))
            .await
            .is_ok()
    };
    assert!(closed(Box::new(half)).await);
    assert!(closed(Box::new(silent)).await);
}
