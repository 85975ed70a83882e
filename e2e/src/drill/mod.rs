//! Drills: each breaks one real thing on the local cluster while requests flow through real sidecars, and counts what
//! was lost.
//!
//! A drill is a function of a [`scene::Scene`], named in [`DRILLS`]. The runner gives it a whole mesh and a shop whose
//! every request is counted, judges the count, and prints one table: fault, what was measured, bound, verdict. A drill
//! calls [`Scene::fault`] for every fault it injects and [`Scene::finding`] (or `time`, `none`) for everything it measures;
//! one that does neither fails. An error means that it could not go on. Drills that know a fault that can be built in
//! are listed in [`sabotage`], and must fail with it.

mod absence;
mod agreement;
mod api_server;
pub mod attendance;
pub mod bed;
mod certificates;
mod clock;
mod connections;
mod controllers;
pub mod finding;
mod injection;
mod kubelet;
pub mod node;
pub mod provider;
mod rollout;
mod root;
mod rotation;
pub mod runner;
pub mod sabotage;
mod scaling;
pub mod scene;
mod sidecar;
mod stage;
pub mod traffic;

use anyhow::Result;

pub use provider::Signer;
pub use runner::{Drill, Lost, Options, Set};
pub use scene::Scene;

macro_rules! drills {
    ($($module:ident::$name:ident, $set:ident, $rate:literal, $fault:literal $(, $lost:ident)? $(=> $signer:ident)?;)*) => {
        &[$(Drill {
            name: stringify!($name),
            fault: $fault,
            set: Set::$set,
            rate: $rate,
            lost: drills!(@ $($lost)?),
            signer: drills!(=> $($signer)?),
            run: |scene| Box::pin($module::$name(scene)),
        }),*]
    };
    (@ $lost:ident) => { Lost::$lost };
    (@) => { Lost::None };
    (=> $signer:ident) => { Signer::$signer };
    (=>) => { Signer::BuiltIn };
}

/// All of them, in the order they run: module and name, set, requests a second, what is broken, and who signs for the
/// mesh if it does not itself.
pub const DRILLS: &[Drill] = drills! {
    controllers::killed_controllers, Quick, 500, "SIGKILL of the busiest controller";
    controllers::frozen_controller, Whole, 100, "SIGSTOP of a controller";
    controllers::partitioned_controller, Whole, 100, "a controller's packets are dropped";
    rollout::rolling_restart, Quick, 200, "rolling restart of a component";
    rollout::drained_node, Whole, 200, "the control plane is evicted from its node";
    scaling::scaled_up, Quick, 200, "2 controllers become 4";
    scaling::scaled_down, Whole, 200, "4 controllers become 1";
    scaling::reconnect_storm, Whole, 100, "all sidecars come to one controller at once";
    scaling::connections_of_bounded_age, Whole, 200, "maxConnectionAge=10s";
    absence::headless, Quick, 200, "no control plane, then no pod of a backend";
    sidecar::sidecar_restart_headless, Whole, 100, "no control plane, then no Envoy in a pod that keeps its configuration";
    agreement::identical_configuration, Quick, 100, "a controller dies amid random changes";
    root::one_root, Quick, 50, "replicas at once, and killed, without a root";
    injection::repeated_admission, Quick, 50, "an injector dies amid repeated deliveries";
    injection::injectors_added, Whole, 50, "pods come faster than one injector admits them";
    injection::orphaned_secrets, Whole, 50, "a pod is admitted and never comes";
    rotation::root_rotation, Whole, 100, "the root certificate is exchanged, and back";
    certificates::renewed_bootstraps, Whole, 100, "sidecars' own certificates are renewed, and the renewer dies";
    certificates::renewed_certificates, Quick, 200, "all service certificates are renewed";
    clock::jumped_clocks, Whole, 100, "clocks of the control plane jump by an hour";
    api_server::silent_api_server, Whole, 100, "the API server stands still";
    api_server::killed_api_server, Whole, 100, "the API server is gone";
    kubelet::silent_kubelet, Whole, 100, "the kubelet stands still, and its pods run on";
    scaling::autoscaled, Whole, 50, "load on the control plane's CPU";
    api_server::cold_start, Whole, 50, "power cut of the whole cluster", Any;
    provider::vault_outage, Whole, 50, "Vault stands still, is gone, has another root" => Vault;
    provider::cert_manager_outage, Whole, 50, "cert-manager stands still, is gone, has another root" => CertManager;
};

/// Runs drills.
pub fn run(options: &Options) -> Result<()> {
    runner::run(options, DRILLS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_drill_has_traffic() {
        let names: BTreeSet<&str> = DRILLS.iter().map(|drill| drill.name).collect();
        assert_eq!(names.len(), DRILLS.len());
        assert!(
            DRILLS
                .iter()
                .all(|drill| drill.rate > 0 && !drill.fault.is_empty())
        );
    }
}
