//! A real API server with a real etcd, alone on this machine, and writing to it fast.
//!
//! Owns both processes and their folder. No kubelet and no controller manager run: pods, their status and EndpointSlices
//! are written as those would write them. Everything listens on loopback, on ports that were free.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Request, Uri};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    etcd::Etcd,
    population::{Object, Size},
    server::Server,
};
use osm_e2e::{
    checkout::Checkout,
    cluster::{certificates::Certificates, programs::Programs},
    command::{command, run},
    progress::Progress,
};

/// Writes under way at a time while the mesh is loaded.
const CONCURRENT: usize = 48;

/// A write to an object.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Write {
    /// Makes an object.
    pub(crate) fn create(object: &Object) -> Self {
        Self {
            method: "POST",
            path: object.collection.clone(),
            content_type: "application/json",
            body: object.body.to_string().into_bytes(),
        }
    }

    /// Merges into an object (RFC 7386).
    pub(crate) fn merge(path: impl Into<String>, change: &Value) -> Self {
        Self {
            method: "PATCH",
            path: path.into(),
            content_type: "application/merge-patch+json",
            body: change.to_string().into_bytes(),
        }
    }

    /// Patches an object (RFC 6902).
    pub(crate) fn patch(path: impl Into<String>, change: &Value) -> Self {
        Self {
            content_type: "application/json-patch+json",
            ..Self::merge(path, change)
        }
    }

    /// Removes an object at once.
    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self {
            method: "DELETE",
            path: format!("{}?gracePeriodSeconds=0", path.into()),
            content_type: "application/json",
            body: Vec::new(),
        }
    }
}

/// The API server, with everything it needs.
pub(crate) struct Api {
    client: Client,
    folder: TempDir,
    kubectl: PathBuf,
    server: Server,
    storage: Server,
    storage_url: Uri,
}

impl Api {
    /// Starts etcd and the API server, and teaches it the mesh's kinds.
    pub(crate) async fn start(progress: &Progress) -> Result<Self> {
        let checkout = Checkout::find()?;
        let [kubernetes, etcd] =
            ["kubernetes", "etcd"].map(|name| Programs::ensure_one(&checkout, name, progress));
        let (kubernetes, etcd) = (kubernetes?, etcd?);
        let programs = kubernetes
            .parent()
            .context("a program without a folder")?
            .to_owned();
        let folder = tempfile::Builder::new().prefix("osm-load-").tempdir()?;
        let [client_port, peer_port, api_port] = free_ports()?;
        let url = format!("https://127.0.0.1:{api_port}");
        let certificates = Certificates::create(&folder.path().join("certificates"), "none", &url)?;

        let etcd_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let mut program = Command::new(etcd);
        program
            .arg(format!("--data-dir={}", folder.path().join("etcd").display()))
            .arg(format!("--listen-client-urls={etcd_url}"))
            .arg(format!("--advertise-client-urls={etcd_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=default={peer_url}"))
            .args(["--unsafe-no-fsync", "--log-level=error"])
            .args([
                "--quota-backend-bytes=8589934592",
                "--auto-compaction-retention=1m",
            ]);
        let storage = Server::start("etcd", folder.path(), &program)?;

        let file = |name: &str| certificates.file(name).display().to_string();
        let mut program = Command::new(programs.join("kube-apiserver"));
        program
            .arg(format!("--etcd-servers={etcd_url}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={api_port}"))
            .arg("--service-cluster-ip-range=10.96.0.0/12")
            .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
            .arg(format!("--client-ca-file={}", file("ca.crt")))
            .arg("--authorization-mode=RBAC")
            // Nothing here makes the accounts of new namespaces.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(format!(
                "--service-account-key-file={}",
                file("service-account.pub")
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                file("service-account.key")
            ))
            .args([
                "--max-requests-inflight=3000",
                "--max-mutating-requests-inflight=1500",
            ])
            .args(["--endpoint-reconciler-type=none", "--v=0"]);
        let server = Server::start("kube-apiserver", folder.path(), &program)?;

        let kubeconfig = certificates.file("admin.kubeconfig");
        std::fs::copy(&kubeconfig, folder.path().join("kubeconfig"))?;
        let file = Kubeconfig::read_from(&kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.read_timeout = Some(Duration::from_secs(60));
        let api = Self {
            client: Client::try_from(config)?,
            kubectl: programs.join("kubectl"),
            folder,
            server,
            storage,
            storage_url: etcd_url.parse()?,
        };
        api.until_ready().await?;
        api.kubectl(
            &["apply", "--server-side", "-f"],
            &[&checkout.root().join("charts/osm/crds")],
        )?;
        api.kubectl(
            &[
                "wait",
                "--for=condition=Established",
                "--timeout=60s",
                "crd",
                "--all",
            ],
            &[],
        )?;
        Ok(api)
    }

    /// The file that leads to it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Where logs are written.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The client.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client of its etcd.
    pub(crate) fn etcd(&self) -> Etcd {
        Etcd::new(self.storage_url.clone())
    }

    /// CPU seconds of the API server and etcd so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        Ok(self.server.usage()?.cpu + self.storage.usage()?.cpu)
    }

    /// Writes the mesh: first the namespaces, then everything in them.
    pub(crate) async fn populate(&self, size: &Size) -> Result<()> {
        for namespace in size.namespaces() {
            self.create(&namespace).await?;
        }
        stream::iter(size.objects())
            .map(|object| async move { self.create(&object).await })
            .buffer_unordered(CONCURRENT)
            .try_collect::<()>()
            .await
    }

    /// Makes an object and writes its status. One that exists is left as it is.
    pub(crate) async fn create(&self, object: &Object) -> Result<()> {
        self.write(&Write::create(object)).await?;
        if let Some(status) = &object.status {
            let name = object.body["metadata"]["name"]
                .as_str()
                .context("an object without a name")?;
            self.write(&Write::merge(
                format!("{}/{name}/status", object.collection),
                status,
            ))
            .await?;
        }
        Ok(())
    }

    /// Does one write. To make what is there, or remove what is not, is no error.
    pub(crate) async fn write(&self, write: &Write) -> Result<()> {
        let mut tries = 0;
        loop {
            let request = Request::builder()
                .method(write.method)
                .uri(&write.path)
                .header(http::header::CONTENT_TYPE, write.content_type)
                .body(write.body.clone())?;
            match self.client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if write.method == "POST" && status.code == 409 => {
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if write.method == "DELETE" && status.code == 404 => {
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code != 429 && status.code < 500 => {
                    bail!("{} {}: {}", write.method, write.path, status.message);
                }
                Err(error) if tries >= 5 => {
                    return Err(error).with_context(|| format!("{} {}", write.method, write.path));
                }
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(200) * tries).await;
                }
            }
        }
    }

    async fn until_ready(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let request = Request::get("/readyz").body(Vec::new())?;
            if self.client.request_text(request).await.is_ok() {
                return Ok(());
            }
            self.storage.usage()?;
            self.server.usage()?;
            ensure!(
                begun.elapsed() < Duration::from_secs(120),
                "the API server does not become ready"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn kubectl(&self, words: &[&str], paths: &[&Path]) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        let mut kubectl = command(&self.kubectl, [kubeconfig.as_str()]);
        run(kubectl.args(words).args(paths))
    }
}

/// Ports nobody listens on.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners: Vec<_> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
