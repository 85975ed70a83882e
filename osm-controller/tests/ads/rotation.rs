//! A root is rotated while requests run between two real Envoys, each served by a controller of its own. The controllers
//! follow one after the other, as replicas do. Every request makes a new TLS connection.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use osm_controller::usage;
use osm_core::{
    api::names,
    certificate::{Profile, rotation::progress::Count},
    envoy,
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
    ir::*,
    resource::{Resource, ResourceType},
};
use osm_proto::envoy::config::{
    core::v3::{address, socket_address},
    listener::v3::Listener,
};
use osm_runtime::issuer::{Authority, Issuer, KeyKind, Member};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    client::{Channel, delta},
    envoy::{Envoy, bind},
    server::{Pki, Server, proxy},
    shop::{self, Shop, store},
};

fn root() -> Member {
    let stored = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
    Member::from_authority(Authority::load(&stored, Timestamp::now()).unwrap())
}

/// A controller, and the sidecar that is connected to it.
struct Replica {
    issuer: Issuer,
    pki: Pki,
    shop: Shop,
    server: Option<Server>,
    sidecar: ProxyIdentity,
    workload: ServiceIdentity,
}

impl Replica {
    async fn start(root: &Member, number: u128, account: &str) -> Self {
        let issuer = Issuer::of(root.clone());
        let pki = Pki::of(issuer.clone());
        let sidecar = proxy(number);
        let shop = Shop::new(std::slice::from_ref(&sidecar));
        let server = Some(Server::start(&pki, &shop.mesh).await);
        let workload = ServiceIdentity::new("shop", account);
        Self {
            issuer,
            pki,
            shop,
            server,
            sidecar,
            workload,
        }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Takes a new arrangement of roots into use, and publishes what follows from it.
    async fn arrange(&mut self, signs: &Member, trusts: &[&Member]) {
        self.issuer
            .arrange(signs.clone(), trusts.iter().copied().cloned().collect());
        self.publish().await;
    }

    async fn publish(&mut self) {
        let roots = self.pki.roots();
        let inbound = ValidationContext {
            name: names::ROOT_CERTIFICATE_INBOUND.into(),
            roots: roots.pem().clone(),
        };
        let inbound = envoy::validation_context(&inbound);
        let leaf = self
            .pki
            .leaf(Profile::service(&self.workload, &TrustDomain::default()))
            .await;
        self.shop
            .set(shop::validation(roots.pem()))
            .set(Resource::new(
                ResourceType::Secret,
                inbound.name.clone(),
                &inbound,
            ))
            .set(shop::certificate(&leaf));
        self.shop.publish();
    }

    /// What the controller would report of its sidecar.
    async fn usage(&self) -> Option<Count> {
        let registry = self.server().ads.registry().clone();
        usage::observe(registry, self.shop.mesh.clone(), self.pki.roots())
            .await
            .proxies
    }

    /// Waits until the sidecar has it all, by what the controller would report.
    async fn followed(&self) {
        let mut last = None;
        for _ in 0..100 {
            last = self.usage().await;
            if last == Some(Count { total: 1, behind: 0 }) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("the sidecar does not follow: {last:?}");
    }

    /// Another process in its place: the sidecar connects anew, by the roots and certificates of now.
    async fn restart(&mut self) {
        let server = self.server.take().unwrap();
        let address = server.address;
        server.stop().await;
        let settings = Default::default();
        self.server = Some(Server::over(bind(address).await, &self.pki, &self.shop.mesh, settings).await);
        self.followed().await;
    }
}

fn on_port(mut listener: Listener, port: u16) -> Arc<Resource> {
    let address = listener
        .address
        .as_mut()
        .and_then(|address| address.address.as_mut());
    if let Some(address::Address::SocketAddress(socket)) = address {
        socket.address = "127.0.0.1".into();
        socket.port_specifier = Some(socket_address::PortSpecifier::PortValue(port.into()));
    }
    Resource::new(ResourceType::Listener, listener.name.clone(), &listener)
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn clusters(name: &str) -> Forward {
    Forward::Clusters(vec![WeightedCluster {
        cluster: name.into(),
        weight: 100,
    }])
}

/// The client's configuration: whoever connects to `port` is connected to the service, which is at `server`.
fn stock_client(shop: &mut Shop, port: u16, server: u16) {
    let settings = Settings::default();
    let key = ClusterKey {
        service: store(),
        target_port: TargetPort::Number(14001),
    };
    let chain = OutboundChain {
        name: "outbound_shop/bookstore_80_tcp".into(),
        port,
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        protocol: Protocol::Tcp,
        forward: clusters(&key.to_string()),
    };
    let outbound = OutboundListener {
        chains: vec![chain],
        passthrough: false,
        ipv6: false,
    };
    let endpoint = Endpoint {
        address: IpAddr::from(Ipv4Addr::LOCALHOST),
        port: server,
    };
    let endpoints = envoy::endpoints(&ClusterEndpoints {
        key,
        endpoints: vec![endpoint],
    });
    shop.set(shop::cluster(&settings))
        .set(Resource::new(
            ResourceType::Endpoint,
            endpoints.cluster_name.clone(),
            &endpoints,
        ))
        .set(on_port(envoy::outbound_listener(&outbound, &settings), port));
}

/// The server's configuration: it listens at `port`, in front of an application at `application`.
fn stock_server(shop: &mut Shop, port: u16, application: u16) {
    let name = "shop/bookstore|14001|local";
    let chain = InboundChain {
        name: "inbound_shop/bookstore_14001_tcp".into(),
        port,
        server_name: store().fqdn(),
        forward: clusters(name),
        access: None,
        judges_paths: false,
    };
    let inbound = InboundListener {
        chains: vec![chain],
        ..Default::default()
    };
    let local = envoy::local_cluster(&LocalCluster {
        name: name.into(),
        port: application,
    });
    shop.set(Resource::new(ResourceType::Cluster, name, &local))
        .set(on_port(
            envoy::inbound_listener(&inbound, &Settings::default()),
            port,
        ));
}

/// An application that sends back what it is sent.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

async fn request(port: u16) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(())
    };
    match timeout(Duration::from_secs(10), exchange).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Requests, one after the other, until they are stopped.
struct Traffic {
    over: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Traffic {
    fn start(port: u16) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let task = tokio::spawn(async move {
            let (mut sent, mut failed) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                sent += 1;
                if let Err(error) = request(port).await {
                    failed.push(format!("request {sent}: {error}"));
                }
                sleep(Duration::from_millis(10)).await;
            }
            (sent, failed)
        });
        Self { over, task }
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_rotated_while_requests_run_and_none_fails() {
    let (old, new) = (root(), root());
    let mut client = Replica::start(&old, 1, "buyer").await;
    let mut server = Replica::start(&old, 2, "bookstore").await;
    let (entry, port, application) = (free_port().await, free_port().await, echo().await);
    stock_client(&mut client.shop, entry, port);
    stock_server(&mut server.shop, port, application);
    client.publish().await;
    server.publish().await;
    let client_envoy = Envoy::start_as(&client.sidecar, &client.pki, client.server().address, false).await;
    let server_envoy = Envoy::start_as(&server.sidecar, &server.pki, server.server().address, false).await;
    client_envoy.ready().await;
    server_envoy.ready().await;
    client.followed().await;
    server.followed().await;
    for attempt in 0.. {
        match request(entry).await {
            Ok(()) => break,
            Err(error) if attempt > 50 => panic!("no way through: {error}\n{}", client_envoy.log()),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
    let pause = || sleep(Duration::from_millis(400));
    let traffic = Traffic::start(entry);
    pause().await;

    // The new root is trusted, first by one replica, then by the other.
    client.arrange(&old, &[&old, &new]).await;
    pause().await;
    server.arrange(&old, &[&old, &new]).await;
    client.followed().await;
    server.followed().await;
    client_envoy.renew(&client.sidecar, &client.pki).await;
    server_envoy.renew(&server.sidecar, &server.pki).await;
    pause().await;

    // It signs, first at one replica, then at the other; both replicas are restarted, so that the sidecars meet the new
    // certificate of the discovery service.
    server.arrange(&new, &[&old, &new]).await;
    pause().await;
    client.arrange(&new, &[&old, &new]).await;
    client.followed().await;
    server.followed().await;
    client.restart().await;
    server.restart().await;
    client_envoy.renew(&client.sidecar, &client.pki).await;
    server_envoy.renew(&server.sidecar, &server.pki).await;
    pause().await;
    assert_eq!(old.leaves(), 0, "nothing in use is signed by the old root");

    // The old root goes, and the sidecars connect once more, with nothing but the new one.
    client.arrange(&new, &[&new]).await;
    pause().await;
    server.arrange(&new, &[&new]).await;
    client.followed().await;
    server.followed().await;
    client_envoy.renew(&client.sidecar, &client.pki).await;
    server_envoy.renew(&server.sidecar, &server.pki).await;
    pause().await;
    client.restart().await;
    server.restart().await;
    pause().await;

    let (sent, failed) = traffic.stop().await;
    assert!(
        failed.is_empty(),
        "{} of {sent} failed: {:?}\n{}",
        failed.len(),
        failed[0],
        client_envoy.log()
    );
    assert!(sent > 100, "{sent}");
    let handshakes = client_envoy
        .stat("cluster.shop/bookstore|14001.ssl.handshake")
        .await;
    assert!(
        handshakes as usize >= sent,
        "{handshakes} handshakes for {sent} requests"
    );

    // What all this is for: a root that is exchanged in one step.
    let traffic = Traffic::start(entry);
    let third = root();
    client.arrange(&third, &[&third]).await;
    client.followed().await;
    pause().await;
    let (sent, failed) = traffic.stop().await;
    assert!(!failed.is_empty(), "{sent} requests would not have noticed");
}

/// A pod that calls nobody and is called by nobody uses no certificate of the mesh, and asks for none: it must not keep
/// anybody waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_without_peers_does_not_hold_a_rotation_up() {
    let (old, new) = (root(), root());
    let mut alone = Replica::start(&old, 1, "buyer").await;
    let nowhere = envoy::outbound_listener(&OutboundListener::default(), &Settings::default());
    alone.shop.set(on_port(nowhere, free_port().await));
    alone.publish().await;
    let _envoy = Envoy::start_as(&alone.sidecar, &alone.pki, alone.server().address, false).await;
    alone.followed().await;
    alone.arrange(&old, &[&old, &new]).await;
    alone.followed().await;
}

/// One that is to use them counts as behind until it has them, whatever else it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_with_peers_is_waited_for_until_it_has_the_roots() {
    let mut caller = Replica::start(&root(), 1, "buyer").await;
    stock_client(&mut caller.shop, free_port().await, free_port().await);
    caller.publish().await;
    let leaf = caller.pki.sidecar(&caller.sidecar).await;
    let channel = Channel::open(caller.server().address, &caller.pki.roots(), Some(&leaf))
        .await
        .unwrap();
    let mut stream = delta(&channel).await.unwrap();
    for kind in [ResourceType::Cluster, ResourceType::Listener] {
        stream.subscribe(kind, &[]).await;
        stream.take().await;
    }
    for _ in 0..10 {
        assert_eq!(caller.usage().await, Some(Count { total: 1, behind: 1 }));
        sleep(Duration::from_millis(20)).await;
    }
    stream
        .subscribe(ResourceType::Secret, &[names::ROOT_CERTIFICATE_INBOUND])
        .await;
    stream.take().await;
    caller.followed().await;
}
