//! Processes and controllers that come and go.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, time::Duration};

use osm_core::{certificate::Profile, identity::TrustDomain, ir::Settings, resource::ResourceType};
use tokio::net::TcpListener;

use crate::{
    backend,
    pod::Pod,
    server::{Pki, Server, proxy},
    shop::{self, Shop},
};

/// Everything a client of one HTTP service is sent.
async fn stock(pki: &Pki, shop: &mut Shop, backend: SocketAddr) {
    let settings = Settings::default();
    let own = pki
        .leaf(Profile::service(&proxy(1).service, &TrustDomain::default()))
        .await;
    shop.set(shop::cluster(&settings))
        .set(backend::endpoints(&[backend]))
        .set(backend::listener(&settings))
        .set(shop::routes(&["bookstore"]))
        .set(shop::validation(pki.roots().pem()))
        .set(shop::certificate(&own));
    shop.publish();
}

/// The address of a controller that was there.
async fn bind(address: SocketAddr) -> TcpListener {
    for _ in 0..100 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        if socket.bind(address).is_ok()
            && let Ok(listener) = socket.listen(128)
        {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{address} stays taken");
}

struct Scene {
    pki: Pki,
    shop: Shop,
    server: Server,
    pod: Pod,
}

/// A controller and a pod that is served through it.
async fn scene() -> Scene {
    let pki = Pki::new();
    let backend = backend::start(&pki).await;
    let mut shop = Shop::new(&[proxy(1)]);
    stock(&pki, &mut shop, backend).await;
    let server = Server::start(&pki, &shop.mesh).await;
    let pod = Pod::started(&pki, server.address).await;
    pod.ready().await;
    pod.until("an answer", async || pod.request("bookstore").await == Some(200))
        .await;
    pod.kept().await;
    pod.nothing_rejected().await;
    Scene {
        pki,
        shop,
        server,
        pod,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_restarts_while_no_controller_answers_serves_again() {
    let Scene {
        pki,
        shop,
        server,
        mut pod,
    } = scene().await;
    let address = server.address;
    for name in ["kept", "xds.sock"] {
        let mode = std::fs::metadata(pod.path("volume").join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{name} is nobody else's");
    }

    // The control plane goes. What runs, goes on.
    server.stop().await;
    pod.until("standing by", async || {
        pod.metric("proxy_answered{by=\"kept\"}").await == 1
    })
    .await;
    assert_eq!(pod.request("bookstore").await, Some(200));

    // Both processes of the sidecar die and start again.
    for _ in 0..2 {
        pod.kill();
        assert_eq!(pod.request("bookstore").await, None);
        pod.start_relay();
        pod.start_envoy();
        pod.ready().await;
        pod.until("an answer", async || pod.request("bookstore").await == Some(200))
            .await;
        assert_eq!(pod.request("another").await, Some(404));
        pod.nothing_rejected().await;
        assert_eq!(pod.metric("proxy_answered{by=\"kept\"}").await, 1);
    }

    // A controller returns, and knows of a change: that arrives, and nothing else does.
    let before = pod.updates().await;
    let mut replica = Shop::copy(&shop);
    replica.set(shop::routes(&["bookstore", "another"])).publish();
    let second = Server::over(bind(address).await, &pki, &replica.mesh, Default::default()).await;
    pod.until("the change", async || pod.request("another").await == Some(200))
        .await;
    let after = pod.updates().await;
    let changed: Vec<_> = after
        .iter()
        .filter(|update| !before.contains(update))
        .map(|update| update.0.as_str())
        .collect();
    let routes = format!("http.rds-outbound.80.rds.{}.update_success", shop::route_name());
    assert_eq!(changed, [routes.as_str()]);
    assert_eq!(pod.metric("proxy_answered{by=\"controller\"}").await, 1);

    // Live again: what is removed now is also gone from what is kept.
    replica
        .remove(ResourceType::Listener, "outbound-listener")
        .publish();
    pod.until("the removal", async || {
        pod.stat("listener_manager.listener_removed").await == 1
    })
    .await;
    second.stop().await;
    pod.kill();
    pod.start_relay();
    pod.start_envoy();
    pod.until("a start", async || {
        pod.stat("listener_manager.workers_started").await == 1
    })
    .await;
    assert_eq!(
        pod.stat("listener_manager.listener_added").await,
        1,
        "the bootstrap's own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_restarts_costs_nothing_while_a_controller_answers() {
    let mut scene = scene().await;
    let before = scene.pod.updates().await;
    scene.pod.relay = None;
    scene.pod.start_relay();
    let pod = &scene.pod;
    pod.until("a connection", async || {
        pod.metric("proxy_answered{by=\"controller\"}").await == 1
    })
    .await;
    // A change passes, so that all that was to come before has come.
    scene.shop.set(shop::routes(&["bookstore", "another"])).publish();
    pod.until("the change", async || pod.request("another").await == Some(200))
        .await;
    let after = pod.updates().await;
    let changed: Vec<_> = after.iter().filter(|update| !before.contains(update)).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(pod.request("bookstore").await, Some(200));

    // What was kept is lost, for whatever reason: it is filled again without disturbing anything.
    let kept = pod.metric("kept_resources").await;
    scene.pod.relay = None;
    std::fs::write(scene.pod.path("volume").join("kept"), b"not a journal").unwrap();
    scene.pod.start_relay();
    scene.pod.kept().await;
    assert_eq!(scene.pod.metric("kept_resources").await, kept);
    assert_eq!(scene.pod.request("another").await, Some(200));
    scene.pod.nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_hangs_is_none() {
    let mut scene = scene().await;
    let address = scene.server.address;
    scene.server.stop().await;
    // It accepts connections, and no more.
    let hanging = bind(address).await;
    scene.pod.kill();
    scene.pod.start_relay();
    scene.pod.start_envoy();
    scene.pod.ready().await;
    let pod = &scene.pod;
    pod.until("an answer", async || pod.request("bookstore").await == Some(200))
        .await;
    drop(hanging);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_never_served_waits_for_a_controller() {
    let pki = Pki::new();
    let backend = backend::start(&pki).await;
    let mut shop = Shop::new(&[proxy(1)]);
    stock(&pki, &mut shop, backend).await;
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let pod = Pod::started(&pki, address).await;
    pod.until("an attempt", async || {
        pod.stat("cluster_manager.cds.update_attempt").await >= 2
    })
    .await;
    assert_eq!(pod.stat("listener_manager.workers_started").await, 0);
    let _server = Server::over(bind(address).await, &pki, &shop.mesh, Default::default()).await;
    pod.ready().await;
    pod.until("an answer", async || pod.request("bookstore").await == Some(200))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_refuses_the_pod_is_believed() {
    let mut scene = scene().await;
    // It no longer knows the pod, as when the pod was deleted.
    scene.shop.remove_proxy(&proxy(1)).publish();
    scene.pod.kill();
    scene.pod.start_relay();
    scene.pod.start_envoy();
    let pod = &scene.pod;
    pod.until("an attempt", async || {
        pod.stat("cluster_manager.cds.update_attempt").await >= 2
    })
    .await;
    assert_eq!(pod.metric("standbys_total").await, 0);
    assert_eq!(pod.stat("listener_manager.workers_started").await, 0);
}
