//! What a controller says about itself and its proxies, as `osm check` and `osm proxy status` read it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use axum::Router;
use osm_controller::{
    ads::Settings,
    certificates::Certificates,
    connections::{self, Connections},
};
use osm_core::{
    resource::ResourceType::Cluster,
    status::{PROXIES_PAGE, Proxies, Replica, STATUS_PAGE, Standing},
};
use osm_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use osm_runtime::{
    CancellationToken,
    admin::{Admin, Version},
    health::Health,
    metrics::Metrics,
    serve::ServeMetrics,
    status::Status,
};

use crate::{
    client::{Channel, Delta, delta},
    server::{Pki, Server, proxy},
    shop::Shop,
};

struct Setup {
    pki: Pki,
    shop: Shop,
    server: Server,
    connections: Connections,
    status: Status,
}

async fn setup() -> Setup {
    let pki = Pki::new();
    let mut shop = Shop::new(&[proxy(1), proxy(2), proxy(3)]);
    shop.clusters(&["a"], "1").publish();
    let server = Server::start_with(&pki, &shop.mesh, Settings::default()).await;
    let connections = Connections {
        pod: "osm-controller-0".to_owned(),
        ads: server.ads.clone(),
        certificates: Certificates::none(),
    };
    let status = Status::new("osm-controller", "v2", "osm-controller-0", &Health::new());
    connections::describe(&status, &shop.mesh, &server.ads, &connections.certificates);
    Setup {
        pki,
        shop,
        server,
        connections,
        status,
    }
}

impl Setup {
    async fn connect(&self, number: u128) -> Delta {
        let leaf = self.pki.sidecar(&proxy(number)).await;
        let channel = Channel::open(self.server.address, &self.pki.roots(), Some(&leaf))
            .await
            .unwrap();
        delta(&channel).await.unwrap()
    }

    /// How the proxies stand with clusters.
    async fn clusters(&self) -> Vec<(Standing, Option<String>)> {
        let page = self.connections.page(None).await;
        let kind = |connection: &osm_core::status::Connection| {
            let kind = connection
                .kinds
                .as_ref()
                .unwrap()
                .get("CDS")
                .cloned()
                .unwrap_or_default();
            (kind.state, kind.reason)
        };
        page.proxies.iter().map(kind).collect()
    }
}

#[tokio::test]
async fn the_page_tells_what_each_proxy_has_confirmed_owes_and_rejects() {
    let mut setup = setup().await;
    let (mut first, mut second) = (setup.connect(1).await, setup.connect(2).await);
    first.subscribe(Cluster, &[]).await;
    assert_eq!(first.take().await, ["+a"]);
    second.subscribe(Cluster, &[]).await;
    let sent = second.next().await.unwrap().unwrap();
    // The answer to the first may still be on its way.
    let confirmed = async {
        while setup.clusters().await[0].0 != Standing::Synced {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), confirmed)
        .await
        .unwrap();
    assert_eq!(setup.clusters().await[1], (Standing::Stale, None));
    let page = setup.connections.page(None).await;
    assert!(
        page.proxies[1].kinds.as_ref().unwrap()["CDS"]
            .waiting_seconds
            .is_some()
    );

    let rejection = DeltaDiscoveryRequest {
        type_url: Cluster.type_url().into(),
        response_nonce: sent.nonce,
        error_detail: Some(osm_proto::google::rpc::Status {
            code: 3,
            message: "a: no such\nthing".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    second.requests.send(rejection).await.unwrap();
    let rejected = async {
        while setup.clusters().await[1].0 != Standing::Nacked {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), rejected)
        .await
        .unwrap();
    assert_eq!(
        setup.clusters().await[1].1.as_deref(),
        Some("a: no such thing"),
        "its own words, made printable"
    );
    let page = setup.connections.page(None).await;
    assert_eq!(page.proxies[1].kinds.as_ref().unwrap()["CDS"].rejected, ["a"]);
    assert_eq!(
        setup.clusters().await[0].0,
        Standing::Synced,
        "others are not concerned"
    );

    let one = setup.connections.page(Some(proxy(2).uuid)).await;
    assert_eq!(one.proxies.len(), 1);
    assert_eq!(one.proxies[0].uuid, proxy(2).uuid.to_string());
    assert_eq!(
        (
            one.proxies[0].namespace.as_str(),
            one.proxies[0].protocol.as_str()
        ),
        ("shop", "delta")
    );

    // What it rejected is corrected: it has nothing to reject any more.
    setup.shop.clusters(&["a"], "2").publish();
    assert_eq!(second.take().await, ["+a"]);
    let corrected = async {
        while setup.clusters().await[1] != (Standing::Synced, None) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), corrected)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_are_served_as_osm_reads_them() {
    let setup = setup().await;
    let mut stream = setup.connect(1).await;
    stream.subscribe(Cluster, &[]).await;
    stream.take().await;
    let (health, metrics, stop) = (Health::new(), Metrics::new(), CancellationToken::new());
    let version = Version {
        version: "v2",
        git_commit: "abc",
        build_date: "today",
    };
    let more = Router::new()
        .merge(setup.status.clone().router())
        .merge(setup.connections.clone().router());
    let admin = Admin {
        health,
        metrics: metrics.clone(),
        version,
        more,
    };
    let serving = ServeMetrics::register(&metrics);
    let (address, thread) = admin
        .spawn("127.0.0.1:0".parse().unwrap(), serving, stop.clone())
        .unwrap();

    let replica: Replica = serde_json::from_str(&fetch(address, STATUS_PAGE).await).unwrap();
    let serves = replica.serves.unwrap();
    assert_eq!((serves.connected, serves.known), (1, 3));
    assert_eq!(
        (replica.pod.as_str(), replica.version.as_str()),
        ("osm-controller-0", "v2")
    );
    let proxies: Proxies = serde_json::from_str(&fetch(address, PROXIES_PAGE).await).unwrap();
    assert_eq!(proxies.proxies.len(), 1);
    let other = format!("{PROXIES_PAGE}?uuid={}", proxy(2).uuid);
    let proxies: Proxies = serde_json::from_str(&fetch(address, &other).await).unwrap();
    assert!(proxies.proxies.is_empty());
    stop.cancel();
    tokio::task::spawn_blocking(move || thread.join())
        .await
        .unwrap()
        .unwrap();
}

async fn fetch(address: SocketAddr, path: &str) -> String {
    let path = path.to_owned();
    let fetch = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{head}");
        body.to_owned()
    };
    tokio::task::spawn_blocking(fetch).await.unwrap()
}
