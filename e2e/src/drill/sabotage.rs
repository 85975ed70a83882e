//! Builds of the control plane with a fault put in, and the drills that must fail on them.
//!
//! A drill that cannot fail proves nothing. The faults are in the programs behind the cargo feature `sabotage`, which no
//! release build has (`.ci/laws` proves it); an environment variable says which one is on. A fault that no program can have
//! is put into the Deployments instead ([`Sabotage::patch`]).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::{DRILLS, Options};
use crate::checkout::Checkout;
use crate::ground;
use crate::image::{Image, catalog, import};
use crate::progress::Progress;

/// The variable that says which fault is on.
pub const VARIABLE: &str = "OSM_SABOTAGE";
/// What the features are called.
const FEATURES: [&str; 3] = [
    "osm-controller/sabotage",
    "osm-injector/sabotage",
    "osm-sidecar/sabotage",
];
/// The programs that have faults, and the chart's names of their images.
const PROGRAMS: [(&str, &str); 3] = [
    ("osm-controller", "osmController"),
    ("osm-injector", "osmInjector"),
    ("osm-sidecar", "osmHealthcheck"),
];

/// A fault that is built in: one of `osm_core::sabotage::Fault`, which this program cannot name, since what is compiled
/// together shares its features and all of it would get the faults. One that is not known there, and no patch either, makes its
/// drills pass, which is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// Each replica gives its own versions to the same configuration.
    RandomVersions,
    /// A replica that found no root uses the one it made, without looking which was stored.
    NoReadBack,
    /// A replica that is told to leave is gone at once.
    NoDrain,
    /// New streams are let in as fast as they come.
    NoLimiter,
    /// Sidecars wait up to twenty seconds before they come back to a controller.
    SlowReconnect,
    /// Sidecars do not ask whether the controller is there, on HTTP/2 nor on TCP.
    NoPings,
    /// Kubelets do not ask whether a replica still turns.
    NoLiveness,
    /// Requests are not tried again.
    NoRetries,
    /// Connections of sidecars are ended after five seconds.
    ShortConnections,
    /// Connections of sidecars live for ever, whatever is configured.
    EndlessConnections,
    /// Each injector has its own answer to an admission request.
    OwnNames,
    /// Injectors that do not hold the Lease take seven seconds over each answer.
    SlowFollowers,
    /// Secrets without pods stay.
    NoCollection,
    /// Certificates are not renewed.
    NoRenewal,
    /// Certificates begin when they are made.
    NoBackdate,
    /// A replica is not ready while it cannot watch.
    ImpatientReadiness,
    /// Only the root that signs is trusted.
    NoOverlap,
    /// A provider may come with another root.
    NoPin,
    /// What a sidecar kept is not read when it starts.
    Forgetful,
    /// Endpoints whose nodes alone are in doubt are given up like all that are not ready.
    Credulous,
    /// The replica that cannot renew its Lease ends, as clients of Kubernetes often do.
    FatalLease,
    /// The webhooks are asked about every namespace, their own and Kubernetes' among them.
    SelectsAll,
    /// A controller is never idle.
    Busy,
}

impl Sabotage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RandomVersions => "random-versions",
            Self::NoReadBack => "no-read-back",
            Self::NoDrain => "no-drain",
            Self::NoLimiter => "no-limiter",
            Self::SlowReconnect => "slow-reconnect",
            Self::NoPings => "no-pings",
            Self::NoLiveness => "no-liveness",
            Self::NoRetries => "no-retries",
            Self::ShortConnections => "short-connections",
            Self::EndlessConnections => "endless-connections",
            Self::OwnNames => "own-names",
            Self::SlowFollowers => "slow-followers",
            Self::NoCollection => "no-collection",
            Self::NoRenewal => "no-renewal",
            Self::NoBackdate => "no-backdate",
            Self::ImpatientReadiness => "impatient-readiness",
            Self::NoOverlap => "no-overlap",
            Self::NoPin => "no-pin",
            Self::Forgetful => "forgetful",
            Self::Credulous => "credulous",
            Self::FatalLease => "fatal-lease",
            Self::SelectsAll => "selects-all",
            Self::Busy => "busy",
        }
    }

    /// The drills that must fail with it.
    pub fn drills(self) -> &'static [&'static str] {
        match self {
            Self::RandomVersions => &["identical_configuration", "rolling_restart"],
            Self::NoReadBack => &["one_root"],
            Self::NoDrain => &["rolling_restart"],
            Self::NoLimiter => &["reconnect_storm"],
            Self::SlowReconnect => &["killed_controllers", "drained_node", "scaled_down"],
            Self::NoPings => &["partitioned_controller"],
            Self::NoLiveness => &["frozen_controller"],
            Self::NoRetries => &["headless"],
            Self::ShortConnections => &["scaled_up"],
            Self::EndlessConnections => &["connections_of_bounded_age"],
            Self::OwnNames => &["repeated_admission"],
            Self::SlowFollowers => &["injectors_added"],
            Self::NoCollection => &["orphaned_secrets"],
            Self::NoRenewal => &["renewed_certificates", "renewed_bootstraps"],
            Self::NoBackdate => &["jumped_clocks"],
            Self::ImpatientReadiness => &["killed_api_server"],
            Self::NoOverlap => &["root_rotation"],
            Self::NoPin => &["vault_outage", "cert_manager_outage"],
            Self::Forgetful => &["sidecar_restart_headless"],
            Self::Credulous => &["silent_kubelet"],
            Self::FatalLease => &["silent_api_server"],
            Self::SelectsAll => &["cold_start"],
            Self::Busy => &["autoscaled"],
        }
    }

    /// The JSON patch that puts it into the Deployment of each component, if that is where it is.
    pub fn patch(self) -> Option<&'static str> {
        match self {
            Self::NoLiveness => {
                Some(r#"[{"op": "remove", "path": "/spec/template/spec/containers/0/livenessProbe"}]"#)
            }
            _ => None,
        }
    }

    /// Values of the chart that install the images of [`build`].
    pub fn settings() -> Vec<String> {
        PROGRAMS
            .map(|(program, value)| format!("image.name.{value}={}", image_name(program)))
            .to_vec()
    }
}

/// Runs the drills that know a fault on a control plane that has it, for each of these faults, or for all. Goes on when
/// a drill has not failed, and says so at the end.
pub fn run(options: &Options, faults: &[Sabotage]) -> Result<()> {
    let faults = if faults.is_empty() {
        Sabotage::value_variants()
    } else {
        faults
    };
    let mut blind = Vec::new();
    for fault in faults {
        let options = Options {
            sabotage: Some(*fault),
            ..options.clone()
        };
        if !options.is_any(DRILLS) {
            continue;
        }
        println!("\nBuilt with {}:", fault.name());
        if let Err(error) = super::run(&options) {
            eprintln!("{error:#}");
            blind.push(fault.name());
        }
    }
    ensure!(
        blind.is_empty(),
        "not all drills failed that should have, with {}",
        blind.join(", ")
    );
    Ok(())
}

fn image_name(program: &str) -> String {
    format!("{program}-sabotage")
}

/// Builds the control plane with the faults in it, gives the images to the cluster, and returns the folder of the
/// programs. What cargo leaves behind is then the programs without faults again.
pub fn build(checkout: &Checkout, progress: &Progress) -> Result<PathBuf> {
    let (profile, folder) = (ground::profile(), checkout.local().join("sabotage"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let built = progress.long_step("compile the control plane with faults", || {
        catalog::compile_with(profile, &FEATURES, checkout)?;
        copy(&catalog::binaries(profile, checkout), &folder)
    });
    progress.long_step("compile it without again", || catalog::compile(profile, checkout))?;
    built?;
    for (program, _) in PROGRAMS {
        let mut image: Image = catalog::of_program(program, &folder.join(program))?;
        image.name = image_name(program);
        progress.step(&image.reference(), || import::import(&image, checkout))?;
    }
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for (program, _) in PROGRAMS {
        let place = to.join(program);
        // It may be running from an earlier run: the file is replaced, not written into.
        let _ = fs::remove_file(&place);
        fs::copy(from.join(program), &place).with_context(|| format!("cannot write {}", place.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_drill_knows_a_fault() {
        let mut known = BTreeSet::new();
        for fault in Sabotage::value_variants() {
            let value = fault.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(fault.name()));
            assert!(!fault.drills().is_empty());
            known.extend(fault.drills());
        }
        let drills: BTreeSet<&str> = DRILLS.iter().map(|drill| drill.name).collect();
        assert_eq!(known, drills);
    }
}
