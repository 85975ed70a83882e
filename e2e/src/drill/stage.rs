//! What all drills of a run share: the mesh they break, and how it is installed.
//!
//! Invariant: the mesh is installed anew when a drill wants another signer than the last one, and else left alone.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use super::bed;
use super::provider::{Provider, Signer};
use super::sabotage::{self, Sabotage};
use super::scene::{COMPONENTS, SOON};
use crate::checkout::Checkout;
use crate::ground::{self, Ground};
use crate::harness::mesh::NAMESPACE;
use crate::harness::{Mesh, eventually};

/// How the mesh of the drills is installed.
const SETTINGS: [&str; 6] = [
    "enablePermissiveTrafficPolicy=false",
    "enableEgress=true",
    "enableDebugServer=true",
    "envoyLogLevel=warning",
    "osmController.enablePodDisruptionBudget=true",
    "injector.enablePodDisruptionBudget=true",
];

/// What all drills of a run share.
pub struct Stage {
    pub(super) mesh: Arc<Mesh>,
    pub(super) checkout: Checkout,
    /// Where the control plane's programs are.
    pub(super) programs: PathBuf,
    pub(super) sabotage: Option<Sabotage>,
    /// Who signs for the mesh that is installed; `None` when none is.
    signer: Option<Signer>,
    /// The same as a program on the cluster, if it is one.
    pub(super) provider: Option<Arc<Provider>>,
}

impl Stage {
    /// One without a mesh on it.
    pub(super) async fn empty(
        ground: &Ground,
        sabotage: Option<Sabotage>,
        programs: PathBuf,
    ) -> Result<Self> {
        Ok(Self {
            mesh: ground.mesh().await?,
            checkout: ground.checkout().clone(),
            programs,
            sabotage,
            signer: None,
            provider: None,
        })
    }

    /// The settings of the chart.
    pub(super) fn settings(&self) -> Vec<String> {
        let own = SETTINGS.map(str::to_owned);
        let faults = self.sabotage.iter().flat_map(|_| Sabotage::settings());
        let provider = self.provider.iter().flat_map(|provider| provider.settings());
        own.into_iter().chain(faults).chain(provider).collect()
    }

    /// Installs the mesh anew, unless this signer's is there already.
    pub(super) async fn install(&mut self, signer: Signer) -> Result<()> {
        if self.signer == Some(signer) {
            return Ok(());
        }
        self.signer = None;
        ground::clear(&self.mesh).await?;
        let provider = Provider::start(&self.mesh, signer, &self.checkout).await?;
        self.provider = provider.map(Arc::new);
        let (mesh, settings) = (&self.mesh, self.settings());
        let all: Vec<&str> = settings.iter().map(String::as_str).collect();
        let arguments = mesh.install_arguments(&all);
        mesh.osm_ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
            .await?;
        ground::mark(mesh).await?;
        // Made by a controller, soon after it is ready.
        eventually("the MeshConfig", SOON, async || {
            mesh.configure(bed::sidecar_needs()).await
        })
        .await?;
        if let Some(fault) = self.sabotage {
            let variable = format!("{}={}", sabotage::VARIABLE, fault.name());
            for component in COMPONENTS {
                let name = format!("deployment/{component}");
                let set = ["set", "env", "-n", NAMESPACE, &name, &variable];
                mesh.kubernetes.kubectl(&set, "").await?;
                if let Some(patch) = fault.patch() {
                    let change = ["patch", "-n", NAMESPACE, &name, "--type=json", "-p", patch];
                    mesh.kubernetes.kubectl(&change, "").await?;
                }
                let wait = ["rollout", "status", "-n", NAMESPACE, &name, "--timeout=180s"];
                mesh.kubernetes.kubectl(&wait, "").await?;
            }
        }
        self.signer = Some(signer);
        Ok(())
    }
}
