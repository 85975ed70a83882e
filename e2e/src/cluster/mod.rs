//! The cluster the end-to-end work runs on: a local one made here, or the one `CLUSTER=current` names.
//!
//! [`Cluster::connect`] is what tests, demo and drills start from. [`up`], [`down`] and [`check`] are the commands.
//! The local cluster is a real Kubernetes node that lives in a network namespace, a mount namespace and a control group of
//! its own: outside of these it has one network interface, one folder in `/run`, and a folder in the checkout.

mod addons;
pub mod certificates;
pub mod cgroup;
pub mod check;
pub mod containerd;
mod control_plane;
pub mod daemon;
pub mod down;
pub mod kubectl;
mod lock;
mod mounts;
pub mod network;
pub mod node;
pub mod packages;
pub mod power;
pub mod process;
pub mod programs;
pub mod record;
mod settings;
pub mod up;
pub mod wheel;

use std::env;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::image;
use kubectl::Kubectl;

/// Where images of a cluster that is not ours come from, if nothing else is said.
const PUBLIC_REGISTRY: &str = "openservicemesh";

/// A running cluster and the programs to work with it.
#[derive(Debug)]
pub struct Cluster {
    /// Administrator's access.
    pub kubeconfig: PathBuf,
    /// The program.
    pub kubectl: PathBuf,
    /// The program.
    pub helm: PathBuf,
    /// The mesh's own command line tool; it may not have been built yet.
    pub osm: PathBuf,
    /// Where images are named: `<registry>/<component>:<tag>`.
    pub registry: String,
    /// The tag of the components' images.
    pub tag: String,
    /// Whether it is the local cluster, into which images are imported.
    pub is_local: bool,
    /// Keeps other checkouts from taking the machine over meanwhile.
    _in_use: Option<File>,
}

impl Cluster {
    /// The cluster, which must answer.
    pub fn connect() -> Result<Self> {
        let checkout = Checkout::find()?;
        let cluster = if is_current() {
            Self::current(&checkout)?
        } else {
            Self::local(&checkout)?
        };
        if !cluster.kubectl().answers("/readyz") {
            let advice = if cluster.is_local {
                "start it with `make cluster-up`"
            } else {
                "see $KUBECONFIG"
            };
            bail!(
                "the cluster of {} does not answer: {advice}",
                cluster.kubeconfig.display()
            );
        }
        Ok(cluster)
    }

    /// `kubectl` for this cluster.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.kubectl, &self.kubeconfig)
    }

    /// The full name of a component's image.
    pub fn image(&self, component: &str) -> String {
        format!("{}/{component}:{}", self.registry, self.tag)
    }

    fn local(checkout: &Checkout) -> Result<Self> {
        let in_use = lock::for_use()?;
        let mine = record::Record::load().is_some_and(|record| record.checkout == checkout.root());
        if !mine || !checkout.kubeconfig().exists() {
            bail!("no cluster of this checkout runs: start it with `make cluster-up`");
        }
        Ok(Self {
            kubeconfig: checkout.kubeconfig(),
            kubectl: checkout.bin().join("kubectl"),
            helm: checkout.bin().join("helm"),
            osm: checkout.bin().join("osm"),
            registry: image::REGISTRY.to_owned(),
            tag: image::TAG.to_owned(),
            is_local: true,
            _in_use: Some(in_use),
        })
    }

    fn current(checkout: &Checkout) -> Result<Self> {
        let kubeconfig = match env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(paths) => env::split_paths(&paths)
                .next()
                .context("KUBECONFIG names no file")?,
            None => PathBuf::from(env::var_os("HOME").context("neither KUBECONFIG nor HOME is set")?)
                .join(".kube/config"),
        };
        let osm = checkout.bin().join("osm");
        Ok(Self {
            kubeconfig,
            kubectl: "kubectl".into(),
            helm: "helm".into(),
            osm: if osm.exists() { osm } else { "osm".into() },
            registry: env::var("OSM_IMAGE_REGISTRY").unwrap_or_else(|_| PUBLIC_REGISTRY.to_owned()),
            tag: env::var("OSM_IMAGE_TAG").unwrap_or_else(|_| format!("v{}", env!("CARGO_PKG_VERSION"))),
            is_local: false,
            _in_use: None,
        })
    }
}

/// Whether a cluster from elsewhere is to be used: `CLUSTER=current`.
pub fn is_current() -> bool {
    env::var("CLUSTER").is_ok_and(|value| value == "current")
}
