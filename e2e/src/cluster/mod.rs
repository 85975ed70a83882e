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
pub mod interruptions;
pub mod kubectl;
mod leftovers;
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

/// An image of a program that is not this project's: made here for the local cluster, pulled from where it is published
/// by any other.
#[derive(Debug)]
pub struct Foreign {
    /// What it is called here.
    pub name: &'static str,
    /// The variable that names another one for a cluster that is not ours.
    variable: &'static str,
    /// Where it is published.
    published: &'static str,
}

impl Foreign {
    /// The one that is pulled, where the variable says `chosen`.
    fn pulled(&self, chosen: Option<String>) -> String {
        chosen
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| self.published.to_owned())
    }
}

/// The sidecars' proxy, of the release that the chart installs.
pub const ENVOY: Foreign = Foreign {
    name: "envoy",
    variable: "OSM_ENVOY_IMAGE",
    published: "envoyproxy/envoy:distroless-v1.40.0",
};

/// The demo's database.
pub const MARIADB: Foreign = Foreign {
    name: "mariadb",
    variable: "OSM_MARIADB_IMAGE",
    published: "mariadb:10.11",
};

/// What `cluster check` starts.
pub const BUSYBOX: Foreign = Foreign {
    name: "busybox",
    variable: "OSM_BUSYBOX_IMAGE",
    published: "busybox:1.36",
};

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

    /// The full name of an image of a program from elsewhere, which no registry of this project has.
    pub fn foreign_image(&self, image: &Foreign) -> String {
        if self.is_local {
            return self.image(image.name);
        }
        image.pulled(env::var(image.variable).ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_from_elsewhere_are_pulled_from_where_they_are_published() {
        let mut cluster = Cluster {
            kubeconfig: PathBuf::new(),
            kubectl: PathBuf::new(),
            helm: PathBuf::new(),
            osm: PathBuf::new(),
            registry: "registry.example/mesh".to_owned(),
            tag: "v9".to_owned(),
            is_local: true,
            _in_use: None,
        };
        assert_eq!(cluster.foreign_image(&ENVOY), "registry.example/mesh/envoy:v9");
        cluster.is_local = false;
        for image in [ENVOY, MARIADB, BUSYBOX] {
            assert!(!cluster.foreign_image(&image).starts_with(&cluster.registry));
            assert_eq!(image.pulled(None), image.published);
            assert_eq!(image.pulled(Some(String::new())), image.published);
            assert_eq!(image.pulled(Some("mirror/it:1".to_owned())), "mirror/it:1");
        }
    }

    /// What is tested is what is installed.
    #[test]
    fn the_published_envoy_is_the_charts() {
        let values = Checkout::find().unwrap().root().join("charts/osm/values.yaml");
        let values = std::fs::read_to_string(values).unwrap();
        assert!(values.contains(&format!("sidecarImage: {}\n", ENVOY.published)));
        assert!(ENVOY.published.ends_with(wheel::ENVOY.version));
    }
}
