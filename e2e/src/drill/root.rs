//! Many replicas against a cluster without a root: they must end with one.
//!
//! The replicas run as processes of this machine, each on a loopback address of its own, in a namespace of their own:
//! fifty pods would need a bigger node, and the mesh of the other drills keeps its root.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::node::{self, Frozen};
use super::sabotage::VARIABLE;
use super::scene::Scene;
use crate::harness::eventually;

const NAMESPACE: &str = "d-root";
const SECRET: &str = "d-root-ca-bundle";
/// Fifty processes on two cores need their time to start.
const PATIENCE: Duration = Duration::from_secs(300);

/// One replica, ended when dropped.
struct Replica {
    child: Child,
    address: Ipv4Addr,
    is_controller: bool,
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Half of them controllers, half injectors, all started at once while the API server stutters; a third is killed in
/// its first seconds, when it may have written the root and not yet read it back, and started again.
pub(super) async fn one_root(scene: &Scene) -> Result<()> {
    let rounds = if scene.long { 3 } else { 1 };
    let count: u8 = if scene.long { 50 } else { 8 };
    let kubernetes = &scene.mesh.kubernetes;
    kubernetes
        .create_namespace(NAMESPACE, json!({}), json!({}))
        .await?;
    let mut all_served = Vec::new();
    for round in 0..rounds {
        kubernetes.delete("v1/Secret", Some(NAMESPACE), SECRET).await?;
        let stutter = tokio::spawn(stutter());
        let begun = Instant::now();
        let mut replicas = Vec::new();
        for number in 0..count {
            replicas.push(start(scene, number)?);
        }
        scene.fault();
        for (number, replica) in (0..count)
            .zip(&mut replicas)
            .filter(|(number, _)| number % 3 == 0)
        {
            // From 50 ms on, so that some die before their first request, some between two, and some after all.
            let when = Duration::from_millis(50 + 60 * u64::from(number) + 15 * round);
            tokio::time::sleep(when.saturating_sub(begun.elapsed())).await;
            replica.child.kill()?;
            scene.fault();
            *replica = start(scene, number)?;
        }
        let stored = eventually("a root", PATIENCE, async || {
            let secret = kubernetes.get("v1/Secret", Some(NAMESPACE), SECRET).await?;
            let secret = secret.context("there is none")?;
            Ok(secret["data"]["ca.crt"]
                .as_str()
                .context("it has no ca.crt")?
                .to_owned())
        })
        .await?;
        let root = CertificateDer::from_pem_slice(&STANDARD.decode(&stored)?)?;
        let mut served = 0;
        let mut others = BTreeSet::new();
        for replica in &replicas {
            match replica.serves(&root).await {
                Ok(()) => served += 1,
                Err(error) => {
                    others.insert(format!("{}: {error:#}", replica.address));
                }
            }
        }
        stutter.abort();
        all_served.push(begun.elapsed());
        let now = kubernetes.get("v1/Secret", Some(NAMESPACE), SECRET).await?;
        let same = now.is_some_and(|secret| secret["data"]["ca.crt"] == stored.as_str());
        scene.finding(
            format!("replicas of {count} that serve with the one stored root"),
            match others.first() {
                Some(first) => format!("{served}; {first}"),
                None => served.to_string(),
            },
            count,
            served == count,
        );
        scene.finding(
            "the stored root meanwhile",
            if same { "stayed" } else { "changed" },
            "stays",
            same,
        );
    }
    let longest = all_served.into_iter().max().unwrap_or_default();
    scene.time("until all served, with the slowest start", longest, PATIENCE);
    Ok(())
}

/// The API server stands still for a fifth of a second, again and again, until this is dropped.
async fn stutter() {
    while let Ok(frozen) = Frozen::cluster_program("kube-apiserver") {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(frozen);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn start(scene: &Scene, number: u8) -> Result<Replica> {
    let is_controller = number.is_multiple_of(2);
    let component = if is_controller {
        "osm-controller"
    } else {
        "osm-injector"
    };
    let address = Ipv4Addr::new(127, 0, 77, number + 1);
    let log = log_file(scene, &format!("{component}-{number}"))?;
    let mut command = Command::new(scene.programs.join(component));
    command
        .args(["--mesh-name=d-root", "--osm-namespace=d-root"])
        .arg(format!("--ca-bundle-secret-name={SECRET}"))
        .arg(format!("--kubeconfig={}", scene.kubeconfig().display()))
        .env("OSM_BIND_ADDRESS", address.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if is_controller {
        command.env("CONTROLLER_POD_NAME", format!("controller-{number}"));
    } else {
        command
            .arg("--webhook-config-name=d-root-webhook")
            .env("INJECTOR_POD_NAME", format!("injector-{number}"))
            .env("OSM_DEFAULT_ENVOY_IMAGE", &scene.mesh.images.envoy)
            .env("OSM_DEFAULT_INIT_CONTAINER_IMAGE", &scene.mesh.images.demo);
    }
    if let Some(fault) = scene.sabotage {
        command.env(VARIABLE, fault);
    }
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", scene.programs.join(component).display()))?;
    Ok(Replica {
        child,
        address,
        is_controller,
    })
}

fn log_file(scene: &Scene, name: &str) -> Result<File> {
    let folder: PathBuf = scene.checkout.local().join("drills/one_root");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("{name}.log"));
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}

impl Replica {
    /// Waits until it serves its webhook with a certificate that `root` signed, and is otherwise ready.
    async fn serves(&self, root: &CertificateDer<'static>) -> Result<()> {
        // With the wrong root it would never: there is no point in waiting long after the first has been seen.
        eventually("a certificate of the stored root", PATIENCE / 5, async || {
            self.handshake(root).await
        })
        .await
    }

    async fn handshake(&self, root: &CertificateDer<'static>) -> Result<()> {
        let (port, name) = if self.is_controller {
            (9093, "osm-validator.d-root.svc")
        } else {
            (9090, "osm-injector.d-root.svc")
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect((self.address, port)).await?;
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name)?, stream)
            .await?;
        let admin = SocketAddr::from((self.address, 9091));
        let ready = move || node::get_from(admin, "/health/ready", Duration::from_secs(5));
        let (status, reasons) = tokio::task::spawn_blocking(ready).await??;
        // An injector of this drill has no webhook configuration to fill in; its root is what counts.
        ensure!(status == 200 || !reasons.contains("root"), "not ready: {reasons}");
        Ok(())
    }
}
