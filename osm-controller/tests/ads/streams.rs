//! What a stream that is served gets, and how it ends.

use std::time::{Duration, Instant};

use osm_controller::ads::Settings;
use osm_core::resource::ResourceType::{Cluster, Endpoint, Listener};
use osm_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use osm_runtime::serve::Seats;
use tonic::Code;

use crate::{
    client::{Channel, Delta, delta, state},
    server::{Pki, Server, proxy},
    shop::Shop,
};

struct Setup {
    pki: Pki,
    shop: Shop,
    server: Server,
}

async fn setup(settings: Settings) -> Setup {
    let pki = Pki::new();
    let mut shop = Shop::new(&[1, 2, 3, 4, 5].map(proxy));
    shop.clusters(&["a", "b"], "1").publish();
    let server = Server::start_with(&pki, &shop.mesh, settings).await;
    Setup { pki, shop, server }
}

impl Setup {
    async fn channel(&self, number: u128) -> Channel {
        let leaf = self.pki.sidecar(&proxy(number)).await;
        Channel::open(self.server.address, &self.pki.roots(), Some(&leaf))
            .await
            .unwrap()
    }

    async fn connect(&self, number: u128) -> Delta {
        delta(&self.channel(number).await).await.unwrap()
    }

    /// A stream that has a turn, since it was sent a cluster of this long name, and does not answer.
    async fn silent(&mut self, name: &str) -> (Delta, DeltaDiscoveryResponse) {
        self.shop.clusters(&[name], "1").publish();
        let mut stream = self.connect(1).await;
        stream.subscribe(Cluster, &[]).await;
        let held = stream.next().await.unwrap().unwrap();
        (stream, held)
    }
}

/// Asks for so many names that the request is read in turn only.
async fn ask_for_many(stream: &Delta) {
    let names: Vec<_> = (0..2_000).map(|number| format!("{number:050}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    stream.subscribe(Endpoint, &names).await;
}

#[tokio::test]
async fn changes_arrive_in_both_variants() {
    let mut setup = setup(Settings::default()).await;
    let mut incremental = setup.connect(1).await;
    incremental.subscribe(Cluster, &[]).await;
    assert_eq!(incremental.take().await, ["+a", "+b"]);
    let mut whole = state(&setup.channel(2).await).await.unwrap();
    let mut request = DiscoveryRequest {
        type_url: Cluster.type_url().into(),
        ..Default::default()
    };
    whole.requests.send(request.clone()).await.unwrap();
    let response = whole.next().await.unwrap().unwrap();
    assert_eq!(response.resources.len(), 2);
    request.response_nonce = response.nonce;
    request.version_info = response.version_info;
    whole.requests.send(request).await.unwrap();
    setup.shop.clusters(&["b"], "2").publish();
    assert_eq!(incremental.take().await, ["+b"]);
    assert_eq!(whole.next().await.unwrap().unwrap().resources.len(), 2);
    setup.shop.remove(Cluster, "a").publish();
    assert_eq!(incremental.take().await, ["-a"]);
    setup.shop.publish();
    assert!(incremental.is_quiet().await);
}

#[tokio::test]
async fn the_newest_stream_of_a_proxy_wins() {
    let setup = setup(Settings::default()).await;
    let mut first = setup.connect(1).await;
    first.subscribe(Cluster, &[]).await;
    first.take().await;
    let mut second = setup.connect(1).await;
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);
    second.subscribe(Cluster, &[]).await;
    assert_eq!(second.take().await, ["+a", "+b"]);
    assert_eq!(setup.server.ads.registry().len(), 1);
    // In a loop it is slowed down.
    let mut codes = Vec::new();
    for _ in 0..8 {
        codes.push(
            delta(&setup.channel(1).await)
                .await
                .map(|_| ())
                .map_err(|status| status.code()),
        );
    }
    assert!(codes.contains(&Err(Code::ResourceExhausted)), "{codes:?}");
}

#[tokio::test]
async fn a_proxy_whose_pod_is_gone_loses_its_stream_after_a_while() {
    let settings = Settings {
        pod_grace: Duration::from_millis(500),
        ..Settings::default()
    };
    let mut setup = setup(settings).await;
    let mut stream = setup.connect(1).await;
    stream.subscribe(Cluster, &[]).await;
    stream.take().await;
    setup.shop.remove_proxy(&proxy(1)).publish();
    assert!(stream.is_quiet().await, "a pod that terminates keeps what it has");
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn leaving_ends_streams_well_and_soon() {
    let setup = setup(Settings::default()).await;
    let mut stream = setup.connect(1).await;
    stream.subscribe(Cluster, &[]).await;
    stream.take().await;
    let end = tokio::spawn(async move { stream.next().await });
    setup.server.stop().await;
    assert!(
        matches!(end.await.unwrap(), Ok(None)),
        "the proxy is not told of an error"
    );
}

#[tokio::test]
async fn a_reader_that_never_reads_is_cut_and_others_are_served() {
    let settings = Settings {
        answer: Duration::from_secs(3),
        ..Settings::default()
    };
    let mut setup = setup(settings).await;
    // Far more than its flow control window lets through.
    let names: Vec<_> = (0..40)
        .map(|index| format!("{index}-{}", "x".repeat(100_000)))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    setup.shop.clusters(&names, "1").publish();
    let deaf = setup.connect(1).await;
    deaf.subscribe(Cluster, &[]).await;
    deaf.subscribe(Listener, &[]).await;
    let mut other = setup.connect(2).await;
    other.subscribe(Cluster, &[]).await;
    let mut count = 0;
    while count < 42 {
        count += other.take().await.len();
    }
    for value in 0..200 {
        setup.shop.clusters(&["a"], &value.to_string()).publish();
    }
    tokio::time::timeout(Duration::from_secs(10), async {
        while setup.server.ads.registry().len() > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the deaf one is cut");
    loop {
        other.take().await;
        if other.is_quiet().await {
            break;
        }
    }
}

#[tokio::test]
async fn large_responses_are_sent_in_turn_and_whoever_does_not_answer_holds_nobody_up_for_long() {
    let longest = Duration::from_secs(2);
    let settings = Settings {
        turns: (1, longest),
        ..Settings::default()
    };
    let mut setup = setup(settings).await;
    let large = "x".repeat(300_000);
    let (mut silent, held) = setup.silent(&large).await;
    assert_eq!(held.resources.len(), 3);
    let begun = Instant::now();
    let mut other = setup.connect(2).await;
    other.subscribe(Cluster, &[]).await;
    assert!(other.is_quiet().await, "it is not its turn");
    let connection = setup.server.ads.registry().connection(proxy(2).uuid).unwrap();
    let waiting = connection
        .status()
        .await
        .expect("it tells how it stands meanwhile");
    assert!(waiting.kinds[0].wildcard && !waiting.kinds[0].in_flight);
    assert_eq!(other.take().await.len(), 3);
    assert!(
        begun.elapsed() > longest / 2,
        "not before the other's turn is over"
    );
    // A large request is not read before its turn, either.
    setup.shop.clusters(&[large.as_str()], "2").publish();
    let held_again = other.next().await.unwrap().unwrap();
    let begun = Instant::now();
    ask_for_many(&silent).await;
    assert_eq!(
        silent.next().await.unwrap().unwrap().removed_resources.len(),
        2_000
    );
    assert!(
        begun.elapsed() > longest / 2,
        "not before the other's turn is over"
    );
    other.ack(&held_again).await;
    // An answer ends a turn at once.
    silent.ack(&held).await;
    assert_eq!(silent.take().await.len(), 1);
    setup.shop.clusters(&[large.as_str()], "3").publish();
    for stream in [&mut other, &mut silent] {
        assert_eq!(stream.take().await.len(), 1);
    }
    // Whoever waits is told to go as all others are.
    setup.shop.clusters(&[large.as_str()], "4").publish();
    let first = tokio::select! {
        response = other.next() => response.unwrap().unwrap(),
        response = silent.next() => response.unwrap().unwrap(),
    };
    assert_eq!(first.resources.len(), 1);
    let ends = tokio::spawn(async move { (silent.next().await, other.next().await) });
    setup.server.stop().await;
    let (silent, other) = ends.await.unwrap();
    assert!(silent.is_ok() && other.is_ok(), "{silent:?}, {other:?}");
}

#[tokio::test]
async fn while_as_many_wait_to_be_read_as_may_others_wait_to_be_let_in() {
    let longest = Duration::from_secs(2);
    let settings = Settings {
        turns: (1, longest),
        seats: Seats::new(1, 5 * longest),
        ..Settings::default()
    };
    let mut setup = setup(settings).await;
    let _silent = setup.silent(&"x".repeat(300_000)).await;
    let begun = Instant::now();
    let mut reader = setup.connect(2).await;
    assert!(
        begun.elapsed() < longest / 2,
        "whose request is small needs no seat"
    );
    ask_for_many(&reader).await;
    // It takes the seat before the next comes.
    tokio::time::sleep(longest / 10).await;
    let other = setup.connect(3).await;
    assert!(
        begun.elapsed() > longest / 2,
        "not before the reader has its turn"
    );
    assert_eq!(
        reader.next().await.unwrap().unwrap().removed_resources.len(),
        2_000
    );
    other.subscribe(Cluster, &[]).await;
    // Who says nothing does not keep its seat.
    let _quiet = setup.connect(4).await;
    let _next = setup.connect(5).await;
}

#[tokio::test]
async fn what_is_too_much_is_removed_though_a_kind_was_opened_late_with_what_the_proxy_has() {
    let settings = Settings {
        settle: Duration::from_millis(200),
        ..Settings::default()
    };
    let settle = settings.settle;
    let mut setup = setup(settings).await;
    let mut stream = setup.connect(1).await;
    stream.subscribe(Cluster, &[]).await;
    stream.take().await;
    tokio::time::sleep(2 * settle).await;
    let late = DeltaDiscoveryRequest {
        type_url: Endpoint.type_url().into(),
        resource_names_subscribe: vec!["a".into()],
        initial_resource_versions: [("a".into(), "1".into())].into(),
        ..Default::default()
    };
    stream.requests.send(late).await.unwrap();
    // That it has none of the name is said once the cluster that may refer to it is known to be as it should.
    setup.shop.remove(Cluster, "a").publish();
    let mut removed = [stream.take().await, stream.take().await];
    removed.sort();
    assert_eq!(removed, [["-a"], ["-a"]]);
}

#[tokio::test]
async fn a_flood_of_requests_does_not_keep_responses_back() {
    let settings = Settings {
        requests: (100, 50),
        ..Settings::default()
    };
    let mut setup = setup(settings).await;
    let mut stream = setup.connect(1).await;
    stream.subscribe(Cluster, &[]).await;
    stream.take().await;
    let requests = stream.requests.clone();
    let flood = tokio::spawn(async move {
        loop {
            let request = DeltaDiscoveryRequest {
                type_url: Cluster.type_url().into(),
                response_nonce: "999".into(),
                error_detail: Some(Default::default()),
                ..Default::default()
            };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    setup.shop.clusters(&["b"], "2").publish();
    let response = stream.next().await.unwrap().unwrap();
    assert_eq!(response.resources.len(), 1);
    flood.abort();
}

#[tokio::test]
async fn a_status_is_told_of_each_stream() {
    let setup = setup(Settings::default()).await;
    let mut stream = setup.connect(1).await;
    stream.subscribe(Cluster, &[]).await;
    stream.take().await;
    let connection = setup.server.ads.registry().connection(proxy(1).uuid).unwrap();
    let status = connection.status().await.unwrap();
    assert_eq!(status.kinds.len(), 1);
    assert!(status.kinds[0].wildcard);
}
