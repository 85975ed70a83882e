//! Where things are: the checkout this program was built from, its `.local` folder, and the machine's cache.
//!
//! Owns every path outside the source tree that more than one module uses. Must not create anything.
//! Invariant: whatever belongs to one checkout is under its `.local`; whatever checkouts share is under the cache.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A working copy of this repository.
#[derive(Debug, Clone)]
pub struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// The checkout around the working directory, or else the one this program was built in.
    pub fn find() -> Result<Self> {
        let here = env::current_dir().context("the working directory is gone; change to the checkout")?;
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here
            .ancestors()
            .chain(built_in.ancestors())
            .find(|folder| folder.join("e2e/programs").is_dir())
            .context("no checkout here: run this from inside the repository")?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// The top of the working copy.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What runs and tests leave behind, kept out of git.
    pub fn local(&self) -> PathBuf {
        self.root.join(".local")
    }

    /// Programs for the user: `kubectl`, `helm`, `osm`.
    pub fn bin(&self) -> PathBuf {
        self.local().join("bin")
    }

    /// Administrator's access to the local cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.local().join("kubeconfig")
    }

    /// Everything the running cluster keeps on disk; removed as a whole by `cluster down`.
    pub fn cluster_dir(&self) -> PathBuf {
        self.local().join("cluster")
    }

    /// Built image archives.
    pub fn images_dir(&self) -> PathBuf {
        self.local().join("images")
    }

    /// The Go modules of the cluster's programs.
    pub fn programs_source(&self) -> PathBuf {
        self.root.join("e2e/programs")
    }
}

/// What is expensive to make and the same for every checkout: built programs, downloads.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("OSM_CACHE").filter(|path| !path.is_empty()) {
        return std::path::absolute(&cache).context("OSM_CACHE is not a usable path");
    }
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => {
            let home = env::var_os("HOME").context("neither OSM_CACHE, XDG_CACHE_HOME nor HOME is set")?;
            PathBuf::from(home).join(".cache")
        }
    };
    Ok(base.join("osm-e2e"))
}
