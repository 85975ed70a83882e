//! The real Envoy as a client: the bootstrap is the one that sidecars get, but for addresses and the folder.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use osm_core::{
    certificate::Profile,
    envoy::bootstrap::{self, Bootstrap},
    identity::{ProxyIdentity, TrustDomain},
    ir::Settings as MeshSettings,
    resource::ResourceType,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    server::{Pki, Server, proxy},
    shop::{self, Shop},
};

fn program() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = set("OSM_ENVOY").unwrap_or_else(|| {
        let cache = set("OSM_CACHE").or_else(|| Some(set("XDG_CACHE_HOME")?.join("osm-e2e")));
        let cache = cache.or_else(|| Some(set("HOME")?.join(".cache/osm-e2e")));
        cache
            .expect("OSM_ENVOY, OSM_CACHE, XDG_CACHE_HOME or HOME is set")
            .join("envoy-1.40.0/envoy")
    });
    assert!(
        path.is_file(),
        "this test runs the real Envoy, and there is none at {}: `make unit-test` fetches it, or set OSM_ENVOY",
        path.display()
    );
    path
}

/// A running Envoy. Killed when dropped.
pub(crate) struct Envoy {
    process: Child,
    folder: TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Envoy {
    /// Starts a sidecar that finds its controller at `controller`. With `state` it speaks the state-of-the-world
    /// variant.
    async fn start(pki: &Pki, controller: SocketAddr, state: bool) -> Self {
        Self::start_as(&proxy(1), pki, controller, state).await
    }

    pub(crate) async fn start_as(
        proxy: &ProxyIdentity,
        pki: &Pki,
        controller: SocketAddr,
        state: bool,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        let directory = folder.path().to_str().unwrap().to_owned();
        deliver(&folder, proxy, pki).await;
        let trust_domain = TrustDomain::default();
        let certificate = bootstrap::certificate_secret(&directory);
        let validation = bootstrap::validation_secret(&directory);
        fs::write(path(bootstrap::CERTIFICATE_SECRET), certificate).unwrap();
        fs::write(path(bootstrap::VALIDATION_SECRET), validation).unwrap();
        let rendered = Bootstrap {
            uuid: proxy.uuid,
            trust_domain: &trust_domain,
            controller_namespace: "osm-system",
            probes: &[],
            bind: "127.0.0.1".parse().unwrap(),
            directory: &directory,
            relay: None,
        }
        .render();
        let mut config: Value = serde_json::from_str(&rendered).unwrap();
        relocate(&mut config, controller);
        if state {
            config["dynamicResources"]["adsConfig"]["apiType"] = json!("GRPC");
        }
        fs::write(path("bootstrap.json"), config.to_string()).unwrap();
        let process = Command::new(program())
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "--service-cluster",
                "buyer.shop",
                "--log-level",
                "info",
            ])
            .arg("--admin-address-path")
            .arg(path("admin"))
            .arg("-c")
            .arg(path("bootstrap.json"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(path("output")).unwrap())
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, folder }
    }

    /// Brings a renewed bootstrap Secret into the pod.
    pub(crate) async fn renew(&self, proxy: &ProxyIdentity, pki: &Pki) {
        deliver(&self.folder, proxy, pki).await;
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// A page of the admin endpoint.
    async fn page(&self, page: &str) -> Option<String> {
        let address = fs::read_to_string(self.folder.path().join("admin")).ok()?;
        let mut stream = TcpStream::connect(address.trim()).await.ok()?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    /// One of Envoy's statistics; 0 when there is none of the name.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let page = self.page("/stats").await.unwrap_or_default();
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Waits until a statistic says what is wanted.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(u64) -> bool) -> u64 {
        let mut value = 0;
        for _ in 0..300 {
            value = self.stat(name).await;
            if wanted(value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} is {value}; Envoy's log:\n{}", self.log());
    }

    /// Waits until Envoy has everything it asked for.
    pub(crate) async fn ready(&self) {
        self.until("server.live", |live| live == 1).await;
        self.until("listener_manager.workers_started", |started| started == 1)
            .await;
        self.until("listener_manager.total_listeners_active", |active| active >= 1)
            .await;
    }

    /// All the counters of updates, by what they are of.
    async fn updates(&self) -> Vec<(String, u64)> {
        let page = self.page("/stats").await.unwrap_or_default();
        let stats = page.lines().filter_map(|line| line.split_once(": "));
        let mut updates: Vec<_> = stats
            .filter(|(name, _)| {
                let counted = name.ends_with(".update_success") || name.ends_with(".update_rejected");
                // Secrets differ between replicas, and those of the bootstrap come from files.
                counted && !name.contains("sds")
            })
            .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
            .collect();
        updates.sort();
        updates
    }

    async fn nothing_rejected(&self) {
        for (name, count) in self.updates().await {
            assert!(
                !name.ends_with("rejected") || count == 0,
                "{name} is {count}: {}",
                self.log()
            );
        }
    }
}

/// Writes certificate, key and roots; files that are there are replaced by moving, which is what Envoy looks for.
async fn deliver(folder: &TempDir, proxy: &ProxyIdentity, pki: &Pki) {
    let leaf = pki.sidecar(proxy).await;
    for (name, content) in [
        (bootstrap::KEY, leaf.key_pem().to_string()),
        (bootstrap::CERTIFICATE, leaf.chain_pem().to_string()),
        (bootstrap::ROOT, pki.roots().pem().to_string()),
    ] {
        let new = folder.path().join(format!("{name}.new"));
        fs::write(&new, content).unwrap();
        fs::rename(new, folder.path().join(name)).unwrap();
    }
}

/// Points a bootstrap at `controller`; everything it binds gets a free port.
fn relocate(config: &mut Value, controller: SocketAddr) {
    match config {
        Value::Array(list) => list.iter_mut().for_each(|item| relocate(item, controller)),
        Value::Object(fields) => {
            if let Some(address) = fields.get_mut("socketAddress") {
                let is_controller = address["address"]
                    .as_str()
                    .is_some_and(|name| name.contains("osm-controller"));
                if is_controller {
                    address["address"] = json!(controller.ip().to_string());
                    address["portValue"] = json!(controller.port());
                } else {
                    address["portValue"] = json!(0);
                }
            }
            fields.values_mut().for_each(|value| relocate(value, controller));
        }
        _ => {}
    }
}

/// Everything a client of one HTTP service is sent.
async fn stock(pki: &Pki, shop: &mut Shop) {
    let settings = MeshSettings::default();
    let own = pki
        .leaf(Profile::service(&proxy(1).service, &TrustDomain::default()))
        .await;
    shop.set(shop::cluster(&settings))
        .set(shop::endpoints(&[1]))
        .set(shop::listener(&settings))
        .set(shop::routes(&["bookstore"]))
        .set(shop::validation(pki.roots().pem()))
        .set(shop::certificate(&own));
    shop.publish();
}

/// A port that a second server can take over from a first.
pub(crate) async fn bind(address: SocketAddr) -> TcpListener {
    for _ in 0..50 {
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

const CLUSTER: &str = "cluster.shop/bookstore|14001";

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_everything_follows_changes_and_is_sent_nothing_twice() {
    let pki = Pki::new();
    let mut shop = Shop::new(&[proxy(1)]);
    stock(&pki, &mut shop).await;
    let first = Server::start(&pki, &shop.mesh).await;
    let address = first.address;
    let envoy = Envoy::start(&pki, address, false).await;
    envoy.ready().await;
    envoy
        .until("cluster_manager.warming_clusters", |warming| warming == 0)
        .await;
    envoy.nothing_rejected().await;

    // A changed endpoint: one update of EDS and nothing else.
    let before = envoy.updates().await;
    shop.set(shop::endpoints(&[1, 2])).publish();
    envoy
        .until(&format!("{CLUSTER}.membership_total"), |total| total == 2)
        .await;
    let after = envoy.updates().await;
    let changed: Vec<_> = after
        .iter()
        .filter(|update| !before.contains(update))
        .map(|update| &update.0)
        .collect();
    assert!(
        changed.iter().all(|name| name.starts_with(CLUSTER)),
        "{changed:?}"
    );

    // A changed route, then a changed cluster, which has to get out of warming although its endpoints did not change.
    shop.set(shop::routes(&["bookstore", "bookstore.shop"])).publish();
    let routes = format!("http.rds-outbound.80.rds.{}.update_success", shop::route_name());
    envoy.until(&routes, |updates| updates == 2).await;
    let mut settings = MeshSettings::default();
    settings.tls.minimum = 4;
    settings.tls.maximum = 4;
    shop.set(shop::cluster(&settings)).publish();
    envoy
        .until("cluster_manager.cluster_modified", |modified| modified >= 1)
        .await;
    envoy
        .until("cluster_manager.warming_clusters", |warming| warming == 0)
        .await;
    // A changed listener keeps its routes and gets out of warming.
    shop.set(shop::listener(&MeshSettings {
        tracing: None,
        ..settings.clone()
    }))
    .publish();
    envoy
        .until("listener_manager.total_listeners_warming", |warming| warming == 0)
        .await;
    envoy.nothing_rejected().await;

    // Another replica at the same address, with the same configuration: nothing is sent again.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = envoy.updates().await;
    first.stop().await;
    let replica = Shop::copy(&shop);
    let second = Server::over(bind(address).await, &pki, &replica.mesh, Default::default()).await;
    envoy
        .until("control_plane.connected_state", |connected| connected == 1)
        .await;
    for _ in 0..200 {
        if second.ads.registry().len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let connection = second
        .ads
        .registry()
        .connection(proxy(1).uuid)
        .expect("Envoy is back");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = connection.status().await.unwrap();
    assert_eq!(status.kinds.len(), 5, "all kinds are open again: {status:?}");
    assert_eq!(envoy.updates().await, before, "{}", envoy.log());

    // And changes made while it was away arrive, removals included.
    let mut replica = replica;
    replica
        .remove(ResourceType::Listener, "outbound-listener")
        .publish();
    envoy
        .until("listener_manager.listener_removed", |removed| removed == 1)
        .await;
    envoy.nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_is_served_the_state_of_the_world_too() {
    let pki = Pki::new();
    let mut shop = Shop::new(&[proxy(1)]);
    stock(&pki, &mut shop).await;
    let server = Server::start(&pki, &shop.mesh).await;
    let envoy = Envoy::start(&pki, server.address, true).await;
    envoy.ready().await;
    shop.set(shop::endpoints(&[1, 2, 3])).publish();
    envoy
        .until(&format!("{CLUSTER}.membership_total"), |total| total == 3)
        .await;
    let mut settings = MeshSettings::default();
    settings.tls.minimum = 4;
    settings.tls.maximum = 4;
    shop.set(shop::cluster(&settings)).publish();
    envoy
        .until("cluster_manager.cluster_modified", |modified| modified >= 1)
        .await;
    envoy
        .until("cluster_manager.warming_clusters", |warming| warming == 0)
        .await;
    envoy.nothing_rejected().await;
    assert_eq!(server.ads.registry().connections()[0].variant, "state");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_route_does_not_keep_envoy_from_the_rest() {
    let pki = Pki::new();
    let mut shop = Shop::new(&[proxy(1)]);
    stock(&pki, &mut shop).await;
    let server = Server::start(&pki, &shop.mesh).await;
    let envoy = Envoy::start(&pki, server.address, false).await;
    envoy.ready().await;
    // Two virtual hosts of one domain: Envoy refuses it.
    shop.set(shop::routes(&["bookstore", "bookstore"])).publish();
    let connection = server.ads.registry().connection(proxy(1).uuid).unwrap();
    let mut rejected = Vec::new();
    for _ in 0..100 {
        let status = connection.status().await.unwrap();
        rejected = status
            .kinds
            .iter()
            .flat_map(|kind| kind.rejected.clone())
            .collect();
        if !rejected.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    let rejections = async || {
        let updates = envoy.updates().await.into_iter();
        updates
            .filter(|(name, _)| name.ends_with("rejected"))
            .map(|(_, count)| count)
            .sum::<u64>()
    };
    let first = rejections().await;
    shop.set(shop::endpoints(&[1, 2])).publish();
    envoy
        .until(&format!("{CLUSTER}.membership_total"), |total| total == 2)
        .await;
    assert_eq!(
        rejections().await,
        first,
        "what was rejected is not offered again"
    );
    shop.set(shop::routes(&["bookstore", "bookstore.shop"])).publish();
    for _ in 0..100 {
        if connection
            .status()
            .await
            .unwrap()
            .kinds
            .iter()
            .all(|kind| kind.rejected.is_empty())
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rejections().await, first);
}
