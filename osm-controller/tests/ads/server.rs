//! A controller's discovery service in this process, over a mesh that the test publishes.

use std::{net::SocketAddr, time::Duration};

use jiff::Timestamp;
use osm_controller::{
    ads::{Ads, AdsMetrics, Settings},
    certificates::Certificates,
    mesh::Mesh,
    report::Reporter,
};
use osm_core::{
    certificate::{Profile, TrustBundle},
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
};
use osm_runtime::{
    CancellationToken,
    issuer::{Authority, Issuer, KeyKind, Leaf, LeafRequest},
    serve::{self, Limits, ServeMetrics, serve_mutual_tls},
    tls::{self, ClientRoots, ServerCertificate},
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// A mesh's certificates.
pub(crate) struct Pki {
    issuer: Issuer,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let root = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
        let authority = Authority::load(&root, Timestamp::now()).unwrap();
        Self::of(Issuer::from_authority(authority))
    }

    pub(crate) fn of(issuer: Issuer) -> Self {
        Self { issuer }
    }

    pub(crate) fn roots(&self) -> TrustBundle {
        self.issuer.roots()
    }

    pub(crate) async fn leaf(&self, profile: Profile) -> Leaf {
        let request = LeafRequest::new(profile, Duration::from_secs(3_600));
        self.issuer.issue(&request).await.unwrap()
    }

    /// The certificate a sidecar proves itself with.
    pub(crate) async fn sidecar(&self, proxy: &ProxyIdentity) -> Leaf {
        self.leaf(Profile::proxy(proxy, &TrustDomain::default())).await
    }
}

/// A sidecar of the service account `buyer` in the namespace `shop`.
pub(crate) fn proxy(number: u128) -> ProxyIdentity {
    ProxyIdentity {
        uuid: Uuid::from_u128(number),
        service: ServiceIdentity::new("shop", "buyer"),
    }
}

/// A running service. Drained when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) ads: Ads,
    pub(crate) drain: CancellationToken,
    pub(crate) task: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `mesh` on a free port.
    pub(crate) async fn start(pki: &Pki, mesh: &Mesh) -> Self {
        let quick = Settings {
            pod_wait: Duration::from_millis(300),
            ..Settings::default()
        };
        Self::start_with(pki, mesh, quick).await
    }

    pub(crate) async fn start_with(pki: &Pki, mesh: &Mesh, settings: Settings) -> Self {
        // Not 127.0.0.1, from which all else here connects: a server that is to come back at its address would now and then
        // find its port taken.
        let listener = TcpListener::bind("127.0.92.1:0").await.unwrap();
        Self::over(listener, pki, mesh, settings).await
    }

    pub(crate) async fn over(listener: TcpListener, pki: &Pki, mesh: &Mesh, settings: Settings) -> Self {
        let address = listener.local_addr().unwrap();
        let certificate = ServerCertificate::new();
        certificate
            .set(&pki.leaf(Profile::ads(&TrustDomain::default())).await)
            .unwrap();
        let clients = ClientRoots::new();
        clients.set(&pki.roots()).unwrap();
        let ads = Ads::new(
            settings,
            mesh.clone(),
            Certificates::none(),
            Reporter::default(),
            AdsMetrics::default(),
        );
        let drain = CancellationToken::new();
        let limits = Limits {
            handshake: Duration::from_secs(2),
            head: Duration::from_secs(2),
            leave_over: Duration::from_millis(200),
            grace: Duration::from_secs(2),
            ..Limits::ads()
        };
        let server = serve::Settings {
            name: "ads",
            limits,
            metrics: ServeMetrics::default(),
            drain: drain.clone(),
            seats: Some(ads.seats()),
        };
        let tls = tls::ads(&certificate, &clients).unwrap();
        let task = Some(tokio::spawn(serve_mutual_tls(
            listener,
            tls,
            clients.clone(),
            server,
            ads.clone(),
        )));
        Self {
            address,
            ads,
            drain,
            task,
        }
    }

    /// Asks all connections to go and waits until they are gone.
    pub(crate) async fn stop(mut self) {
        self.drain.cancel();
        if let Some(task) = self.task.take() {
            tokio::time::timeout(Duration::from_secs(10), task)
                .await
                .expect("it drains in time")
                .unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}
