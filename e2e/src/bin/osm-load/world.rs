//! What is measured: controllers over a mesh, and fake Envoys connected to them.
//!
//! Owns the controllers' processes on loopback addresses of their own, one host each, so that their ports need not differ.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api as Objects;
use osm_core::{
    api::{names, ports},
    certificate::Profile,
    envoy::bootstrap,
    identity::TrustDomain,
};
use osm_e2e::progress::Progress;
use osm_runtime::issuer::{
    Authority, StoredRoot,
    tresor::{CERTIFICATE_KEY, PRIVATE_KEY_KEY},
};

use crate::{
    api::{Api, Write},
    fleet::{Contact, Fleet, Introduction},
    istiod::{self, Istiod},
    plan::ControlPlane,
    population::{CONTROL_PLANE, MESH, Size, mesh_config},
    server::{Server, Usage, metric},
    sidecar::Variant,
};

/// Longest start of a controller.
const START: Duration = Duration::from_secs(120);

/// One controller replica.
pub(crate) struct Controller {
    /// The process.
    pub(crate) server: Server,
    /// Its address.
    pub(crate) host: IpAddr,
}

/// A mesh with its controllers.
pub(crate) struct World {
    /// Where the mesh is written.
    pub(crate) api: Api,
    /// How large it is.
    pub(crate) size: Size,
    /// The replicas.
    pub(crate) controllers: Vec<Controller>,
    /// The peer, if it is what runs here.
    peer: Option<Istiod>,
}

/// The program of that name, built together with this one.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().context("this program is in no folder")?.join(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not built: build the whole workspace",
        path.display()
    );
    Ok(path)
}

/// The mesh's root, as the controller stored it.
pub(crate) async fn authority(api: &Api) -> Result<Authority> {
    let secrets: Objects<Secret> = Objects::namespaced(api.client(), CONTROL_PLANE);
    let secret = secrets
        .get(names::CA_BUNDLE_SECRET)
        .await
        .context("the mesh's root")?;
    let data = secret.data.unwrap_or_default();
    let text = |key: &str| -> Result<String> {
        let value = data
            .get(key)
            .with_context(|| format!("the root's Secret has no {key}"))?;
        Ok(String::from_utf8(value.0.clone())?)
    };
    let root = StoredRoot {
        certificate: text(CERTIFICATE_KEY)?,
        key: text(PRIVATE_KEY_KEY)?.into(),
    };
    Ok(Authority::load(&root, jiff::Timestamp::now())?)
}

fn controller(name: &str, host: IpAddr, kubeconfig: &Path) -> Result<Command> {
    let mut command = Command::new(program("osm-controller")?);
    command
        .args(["--mesh-name", MESH, "--osm-namespace", CONTROL_PLANE])
        .arg("--bind-address")
        .arg(host.to_string())
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env("CONTROLLER_POD_NAME", name);
    Ok(command)
}

impl World {
    /// A mesh that has been written, without controllers.
    pub(crate) fn new(api: Api, size: Size) -> Self {
        Self {
            api,
            size,
            controllers: Vec::new(),
            peer: None,
        }
    }

    /// Ends the controllers that run; those that are started next are of this control plane.
    pub(crate) async fn prepare(&mut self, control_plane: ControlPlane, progress: &Progress) -> Result<()> {
        self.stop();
        self.peer = match control_plane {
            ControlPlane::Osm => None,
            ControlPlane::Istiod => Some(Istiod::prepare(&self.api, progress).await?),
        };
        Ok(())
    }

    /// Ends the controllers that run.
    pub(crate) fn stop(&mut self) {
        self.controllers.clear();
    }

    /// Starts so many controllers; says how long the first took to be ready.
    pub(crate) async fn start(&mut self, controllers: usize) -> Result<Duration> {
        self.stop();
        let mut longest = Duration::ZERO;
        for number in 0..controllers {
            let host = IpAddr::from(Ipv4Addr::new(127, 0, 0, 10 + u8::try_from(number)?));
            let kubeconfig = self.api.kubeconfig();
            let (name, command, (address, path)) = match &self.peer {
                None => {
                    let name = format!("osm-controller-{number}");
                    let command = controller(&name, host, &kubeconfig)?;
                    (name, command, ((host, ports::ADMIN).into(), "/health/ready"))
                }
                Some(istiod) => {
                    let command = istiod.command(host, &kubeconfig);
                    (format!("istiod-{number}"), command, Istiod::readiness(host))
                }
            };
            let mut server = Server::start(&name, self.api.folder(), &command)?;
            let took = server.until_ready(address, path, START).await?;
            longest = longest.max(took);
            self.controllers.push(Controller { server, host });
        }
        Ok(longest)
    }

    /// Fake Envoys of all proxies, none connected.
    pub(crate) async fn fleet(&self, variant: Variant, threads: usize) -> Result<Fleet> {
        let hosts: Vec<IpAddr> = self
            .controllers
            .iter()
            .map(|controller| controller.host)
            .collect();
        let proxies = 0..self.size.proxies;
        if let Some(istiod) = &self.peer {
            let introductions = proxies
                .map(|proxy| istiod::introduction(&self.size, proxy))
                .collect();
            let contact = Istiod::contact(&hosts);
            return Fleet::start(introductions, istiod.authority(), &contact, variant, threads);
        }
        let trust_domain = TrustDomain::default();
        let introduction = |proxy| Introduction {
            profile: Profile::proxy(&self.size.identity(proxy), &trust_domain),
            node: None,
        };
        let contact = Contact {
            servers: hosts.iter().map(|host| (*host, ports::ADS).into()).collect(),
            server_name: names::ads_server(&trust_domain),
            ping: bootstrap::PING,
            watched: true,
        };
        let authority = authority(&self.api).await?;
        Fleet::start(
            proxies.map(introduction).collect(),
            &authority,
            &contact,
            variant,
            threads,
        )
    }

    /// Lets all controllers' peaks begin anew.
    pub(crate) fn forget_peaks(&self) {
        self.controllers
            .iter()
            .for_each(|controller| controller.server.forget_peak());
    }

    /// What the controllers have used together.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut sum = Usage::default();
        for controller in &self.controllers {
            let usage = controller.server.usage()?;
            sum.cpu += usage.cpu;
            sum.resident += usage.resident;
            sum.peak += usage.peak;
        }
        Ok(sum)
    }

    /// A metric of ours, summed over its labels and the controllers; 0 of a peer, which has others.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        if self.peer.is_some() {
            return Ok(sum);
        }
        for controller in &self.controllers {
            sum += metric(controller.host, name).await?;
        }
        Ok(sum)
    }

    /// The write that switches the mesh's mode.
    pub(crate) fn switch(permissive: bool) -> Write {
        let config = mesh_config(permissive);
        let path = format!("{}/{}", config.collection, names::MESH_CONFIG);
        let change =
            serde_json::json!({"spec": {"traffic": {"enablePermissiveTrafficPolicyMode": permissive}}});
        Write::merge(path, &change)
    }
}
