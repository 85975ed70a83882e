//! Builds of the control plane with a fault put in, and the drills that must fail on them.
//!
//! A drill that cannot fail proves nothing. The faults are in the programs behind the cargo feature `sabotage`, which no
//! release build has (`.ci/laws` proves it); an environment variable says which one is on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::scene::COMPONENTS;
use crate::checkout::Checkout;
use crate::ground;
use crate::image::{Image, catalog, import};
use crate::progress::Progress;

/// The variable that says which fault is on.
pub const VARIABLE: &str = "OSM_SABOTAGE";
/// What the features are called.
const FEATURES: [&str; 2] = ["osm-controller/sabotage", "osm-injector/sabotage"];

/// A fault that is built in.
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
}

impl Sabotage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RandomVersions => "random-versions",
            Self::NoReadBack => "no-read-back",
            Self::NoDrain => "no-drain",
            Self::NoLimiter => "no-limiter",
        }
    }

    /// The drills that must fail with it.
    pub fn drills(self) -> &'static [&'static str] {
        match self {
            Self::RandomVersions => &["identical_configuration", "rolling_restart"],
            Self::NoReadBack => &["one_root"],
            Self::NoDrain => &["rolling_restart"],
            Self::NoLimiter => &["reconnect_storm"],
        }
    }

    /// Values of the chart that install the images of [`build`].
    pub fn settings() -> Vec<String> {
        let names = ["osmController", "osmInjector"].iter().zip(COMPONENTS);
        names
            .map(|(value, component)| format!("image.name.{value}={}", image_name(component)))
            .collect()
    }
}

fn image_name(component: &str) -> String {
    format!("{component}-sabotage")
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
    for component in COMPONENTS {
        let mut image: Image = catalog::of_program(component, &folder.join(component))?;
        image.name = image_name(component);
        progress.step(&image.reference(), || import::import(&image, checkout))?;
    }
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for component in COMPONENTS {
        let place = to.join(component);
        // It may be running from an earlier run: the file is replaced, not written into.
        let _ = fs::remove_file(&place);
        fs::copy(from.join(component), &place)
            .with_context(|| format!("cannot write {}", place.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::DRILLS;

    #[test]
    fn every_fault_has_drills_that_exist() {
        for fault in Sabotage::value_variants() {
            let value = fault.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(fault.name()));
            assert!(!fault.drills().is_empty());
            for drill in fault.drills() {
                assert!(DRILLS.iter().any(|known| known.name == *drill), "{drill}");
            }
        }
    }
}
