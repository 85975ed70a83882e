//! Runs drills, one after the other, on a mesh that is whole again before each.
//!
//! Invariant: a drill is judged by the runner: by the requests that were lost, by the faults and findings it noted, and
//! by every sidecar having accepted all it was sent.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;

use super::bed::{self, SHOP};
use super::finding::{Outcome, Report};
use super::provider::{self, Signer};
use super::sabotage::{self, Sabotage};
use super::scene::{self, Scene};
use super::stage::Stage;
use super::traffic::Loss;
use crate::checkout::Checkout;
use crate::cluster::power;
use crate::ground;
use crate::harness::failure;
use crate::image::catalog;
use crate::progress::{Progress, seconds};

/// The longest any drill may take.
const LIMIT: Duration = Duration::from_secs(2400);

/// Which drills run, and for how long: each set has the ones before in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// On every change: what everything else rests on, in a few minutes.
    Quick,
    /// Every promise, in an hour.
    #[default]
    Whole,
    /// The same for as long as it takes: a hundred kills, fifty replicas, outages of ten minutes.
    Long,
}

/// How many requests may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// None.
    None,
    /// Any number: the fault takes the applications themselves down.
    Any,
}

/// A drill.
#[derive(Clone, Copy)]
pub struct Drill {
    /// Its name, unique.
    pub name: &'static str,
    /// What it breaks.
    pub fault: &'static str,
    /// When it runs.
    pub set: Set,
    /// Requests a second meanwhile.
    pub rate: u32,
    /// How many of them may be lost.
    pub lost: Lost,
    /// Who signs for the mesh: it is installed anew when that changes.
    pub signer: Signer,
    /// The drill. It notes faults and findings in the scene; an error means that it could not go on.
    pub run: for<'a> fn(&'a Scene) -> LocalBoxFuture<'a, Result<()>>,
}

/// What is to be run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only drills whose name contains one of these; all of the set when empty.
    pub filters: Vec<String>,
    /// Which ones.
    pub set: Set,
    /// A fault to build in; the drills that know it must fail.
    pub sabotage: Option<Sabotage>,
}

impl Options {
    /// Whether any of these drills would run.
    pub(super) fn is_any(&self, drills: &[Drill]) -> bool {
        !self.chosen(drills).is_empty()
    }

    fn chosen(&self, drills: &[Drill]) -> Vec<Drill> {
        let is_chosen = |drill: &&Drill| match self.sabotage {
            Some(fault) if !fault.drills().contains(&drill.name) => false,
            None if self.filters.is_empty() => drill.set <= self.set,
            _ => {
                self.filters.is_empty() || self.filters.iter().any(|part| drill.name.contains(part.as_str()))
            }
        };
        drills.iter().filter(is_chosen).copied().collect()
    }
}

/// Runs drills and judges them.
pub fn run(options: &Options, drills: &[Drill]) -> Result<()> {
    let chosen = options.chosen(drills);
    ensure!(
        !chosen.is_empty(),
        "no drill has a name with {:?}",
        options.filters
    );
    ensure!(
        !crate::cluster::is_current(),
        "drills break the cluster they run on: only the local one will do (CLUSTER=current is set)"
    );
    let ground = ground::prepare()?;
    let checkout = ground.checkout().clone();
    let programs = match options.sabotage {
        Some(_) => sabotage::build(&checkout, &Progress::new())?,
        None => catalog::binaries(ground::profile(), &checkout),
    };
    let signers: BTreeSet<&str> = chosen.iter().filter_map(|drill| drill.signer.program()).collect();
    ground.import_programs(signers)?;
    let report = ground.block_on(async {
        let mut stage = Stage::empty(&ground, options.sabotage, programs).await?;
        stage.run(&chosen, options).await
    })?;
    println!("\n{report}\n");
    let file = keep(&report, &checkout)?;
    println!("The same as JSON, with every failed request: {}", file.display());
    let unwanted = report.unwanted();
    match report.sabotage {
        None => ensure!(unwanted.is_empty(), "failed: {}", unwanted.join(", ")),
        Some(fault) => {
            ensure!(
                unwanted.is_empty(),
                "built with {fault}, these drills should have failed and did not: {}",
                unwanted.join(", ")
            );
            println!(
                "Built with {fault}, all {} drills failed, as they must.",
                report.outcomes.len()
            );
        }
    }
    Ok(())
}

fn keep(report: &Report, checkout: &Checkout) -> Result<PathBuf> {
    let folder = checkout.local().join("drills");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let file = folder.join(format!("{now}.json"));
    let text = serde_json::to_vec_pretty(report)?;
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Does `work` while programs of the cluster that end by themselves are started again: a scheduler may take a minute to
/// find that it is confused by what the drill before did.
async fn kept_alive<T>(checkout: &Checkout, work: impl Future<Output = T>) -> Result<T> {
    tokio::pin!(work);
    loop {
        for program in power::revive(checkout)? {
            println!("        {program} had ended by itself and was started again");
        }
        tokio::select! {
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    }
}

impl Stage {
    async fn run(&mut self, drills: &[Drill], options: &Options) -> Result<Report> {
        // What cannot be installed at all is no drill's failure.
        if let Some(first) = drills.first() {
            let checkout = self.checkout.clone();
            kept_alive(&checkout, self.install(first.signer)).await??;
        }
        let mut report = Report {
            sabotage: self.sabotage.map(Sabotage::name),
            ..Report::default()
        };
        for drill in drills {
            println!("\n{}: {}", drill.name, drill.fault);
            let outcome = self.run_one(drill, options.set == Set::Long).await;
            let verdict = if outcome.passed() { "passed" } else { "FAILED" };
            let took = seconds(Duration::from_secs_f64(outcome.took));
            println!("    {verdict}  {} ({took})", drill.name);
            for complaint in outcome.complaints() {
                println!("        {complaint}");
            }
            if !outcome.passed() && self.sabotage.is_none() {
                let folder = self.mesh.failures.join(format!("drill-{}", drill.name));
                // What an earlier run left would mix with this one's; that there is none is fine.
                let _absent = tokio::fs::remove_dir_all(&folder).await;
                let text = format!("{:#?}\n", outcome.complaints());
                let mut namespaces = vec![SHOP.to_owned()];
                namespaces.extend(self.provider.iter().map(|_| provider::HOME.to_owned()));
                failure::collect(&self.mesh, &folder, &namespaces, &text).await;
                println!("        logs, configuration and statistics: {}", folder.display());
            }
            report.outcomes.push(outcome);
            // Kept after each, so that a run that is ended early has left something.
            keep(&report, &self.checkout)?;
        }
        Ok(report)
    }

    async fn run_one(&mut self, drill: &Drill, long: bool) -> Outcome {
        let begun = Instant::now();
        let mut outcome = Outcome {
            drill: drill.name,
            fault: drill.fault,
            faults: 0,
            findings: Vec::new(),
            traffic: None,
            error: None,
            took: 0.0,
        };
        let result = tokio::time::timeout(LIMIT, self.attempt(drill, long, &mut outcome)).await;
        let result = result.unwrap_or_else(|_| Err(anyhow!("not over after {LIMIT:?}")));
        outcome.error = result.err().map(|error| format!("{error:#}"));
        outcome.took = begun.elapsed().as_secs_f64();
        outcome
    }

    async fn attempt(&mut self, drill: &Drill, long: bool, outcome: &mut Outcome) -> Result<()> {
        let checkout = self.checkout.clone();
        let set = async {
            self.install(drill.signer).await.context("installing the mesh")?;
            scene::restore(&self.mesh).await.context("before the drill")?;
            Scene::set(self, drill.rate, long)
                .await
                .context("before the drill, while the traffic began")
        };
        let scene = Box::pin(kept_alive(&checkout, set)).await??;
        let task = std::panic::AssertUnwindSafe((drill.run)(&scene)).catch_unwind();
        let result = match task.await {
            Ok(result) => result,
            Err(_) => Err(anyhow!("the drill panicked; see above")),
        };
        // What was measured before it failed still counts, and so does what was lost.
        let traffic = self.traffic(drill, &scene).await;
        (outcome.faults, outcome.findings) = scene.log();
        let (traffic, problem) = match traffic {
            Ok(loss) => (Some(loss), None),
            Err(error) => (None, Some(error.context("counting the requests"))),
        };
        outcome.traffic = traffic;
        result?;
        problem.map_or(Ok(()), Err)?;
        let rejected = scene.stats().await?.into_values().flatten();
        let rejected: u64 = rejected
            .filter(|(name, _)| name.ends_with(".update_rejected"))
            .map(|(_, count)| count)
            .sum();
        scene.none("updates rejected by sidecars", rejected);
        (outcome.faults, outcome.findings) = scene.log();
        Ok(())
    }

    async fn traffic(&self, drill: &Drill, scene: &Scene) -> Result<Loss> {
        let (what, loss) = match drill.lost {
            Lost::None => ("requests", scene.loss().await?),
            // The sender itself was taken down; what can be counted is what flows afterwards.
            Lost::Any => {
                let stream = bed::send(&self.mesh, drill.rate).await?;
                tokio::time::sleep(Duration::from_secs(5)).await;
                ("requests afterwards", stream.loss(&self.mesh).await?)
            }
        };
        scene.finding(what, loss.summary(), "0 failed", loss.failed == 0);
        Ok(loss)
    }
}
