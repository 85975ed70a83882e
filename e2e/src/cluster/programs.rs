//! The Go programs of the cluster: what they are built from, and where the built ones are kept.
//!
//! Owns the cache of built programs; which there are is in `table`. A Go module of ours under `e2e/programs` pins the releases of
//! the real programs; those of every cluster share one, so that what they have in common has one version and is compiled
//! once. Invariant: a cached program is found under a hash of everything that decides what it is, so that it is built
//! once for all checkouts and never stale.

mod table;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::checkout::{Checkout, cache_dir};
use crate::command::{command, output, run};
use crate::progress::Progress;

pub use table::{NEEDED, ON_DEMAND};

/// One binary, built from one package.
pub struct Program {
    /// The binary's name.
    pub name: &'static str,
    /// The module's folder under `e2e/programs`.
    module: &'static str,
    /// The package to build: one of the module's own (`./name`), or one it depends on.
    package: &'static str,
    /// Extra flags of the linker: most programs learn their version there.
    link_flags: &'static str,
    /// Names the binary is called by, if it is several programs in one.
    aliases: &'static [&'static str],
}

/// Built programs, by every name they are called.
#[derive(Debug, Default)]
pub struct Programs {
    paths: BTreeMap<String, PathBuf>,
    fingerprint: String,
}

impl Programs {
    /// Builds what is not in the cache and returns all that a cluster needs.
    pub fn ensure(checkout: &Checkout, progress: &Progress) -> Result<Self> {
        Self::collect(checkout, &NEEDED.iter().collect::<Vec<_>>(), progress)
    }

    /// One program by name, built if it is not in the cache.
    pub fn ensure_one(checkout: &Checkout, name: &str, progress: &Progress) -> Result<PathBuf> {
        let program = NEEDED
            .iter()
            .chain(&ON_DEMAND)
            .find(|program| program.name == name);
        let program = program.with_context(|| format!("no program is called {name}; see e2e/programs"))?;
        Self::collect(checkout, &[program], progress)?.path(name)
    }

    /// The file of a program, by any name it is called.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        self.paths
            .get(name)
            .cloned()
            .with_context(|| format!("{name} is not among the built programs"))
    }

    /// Tells these programs from any other versions of them.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn collect(checkout: &Checkout, programs: &[&Program], progress: &Progress) -> Result<Self> {
        let cache = cache_dir()?.join("programs");
        let mut found = Self::default();
        let mut all = Sha256::new();
        for program in programs {
            let source = checkout.programs_source().join(program.module);
            let hash = program.hash(&source)?;
            all.update(&hash);
            let folder = cache.join(format!("{}-{hash}", program.name));
            let binary = folder.join(program.name);
            if !binary.exists() {
                let what = format!("build {} (minutes, the first time only)", program.name);
                progress.long_step(&what, || program.build(&source, &folder))?;
            }
            found.paths.insert(program.name.to_owned(), binary);
            for alias in program.aliases {
                found.paths.insert((*alias).to_owned(), folder.join(alias));
            }
        }
        found.fingerprint = hex(all);
        Ok(found)
    }
}

impl Program {
    /// Hash of everything that decides what is built.
    fn hash(&self, source: &Path) -> Result<String> {
        let told = || format!("cannot read the Go module {}", source.display());
        let mut files = Vec::new();
        let own = self.package.strip_prefix("./").map(|folder| source.join(folder));
        for folder in std::iter::once(source.to_owned()).chain(own) {
            for entry in fs::read_dir(&folder).with_context(told)? {
                let path = entry.with_context(told)?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with("go.") || name.ends_with(".go") {
                    files.push(path);
                }
            }
        }
        files.sort();
        if !files.contains(&source.join("go.sum")) {
            bail!(
                "{} has no go.sum: the head of its go.mod says how to make one",
                source.display()
            );
        }
        let mut hash = Sha256::new();
        for part in [self.package, self.link_flags]
            .into_iter()
            .chain(self.aliases.iter().copied())
        {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        for file in files {
            let text = fs::read(&file).with_context(told)?;
            let name = file.strip_prefix(source).unwrap_or(&file).as_os_str();
            for part in [name.as_encoded_bytes(), &text] {
                hash.update(part.len().to_le_bytes());
                hash.update(part);
            }
        }
        Ok(hex(hash)[..16].to_owned())
    }

    /// Builds into `folder`, which appears whole or not at all.
    fn build(&self, source: &Path, folder: &Path) -> Result<()> {
        let cache = folder.parent().context("the cache has no parent folder")?;
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        // Another checkout may be building the same program: it is waited for, not raced.
        let lock = File::create(cache.join(format!("{}.lock", self.name)))?;
        lock.lock().context("cannot lock the cache")?;
        if folder.exists() {
            return Ok(());
        }
        let draft = tempfile::tempdir_in(cache)?;
        let mut go = command("go", ["build", "-trimpath", "-ldflags"]);
        go.arg(format!("-s -w {}", self.link_flags))
            .arg("-o")
            .arg(draft.path().join(self.name))
            .arg(self.package);
        go.current_dir(source)
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off");
        run(&mut go).with_context(|| {
            format!(
                "cannot build {}: Go 1.26 and access to a Go module proxy are needed",
                self.name
            )
        })?;
        for alias in self.aliases {
            std::os::unix::fs::symlink(self.name, draft.path().join(alias))?;
        }
        fs::rename(draft.keep(), folder).with_context(|| format!("cannot create {}", folder.display()))
    }
}

/// A file of a Go module that one of ours requires, as the release has it that is pinned there.
pub fn module_file(checkout: &Checkout, own: &str, module: &str, path: &str) -> Result<PathBuf> {
    let mut go = command("go", ["mod", "download", "-json", module]);
    go.current_dir(checkout.programs_source().join(own))
        .env("GOWORK", "off");
    let answer = output(&mut go).with_context(|| format!("cannot find the Go module {module}"))?;
    let answer: serde_json::Value =
        serde_json::from_str(&answer).context("`go mod download` printed no JSON")?;
    let folder = answer["Dir"]
        .as_str()
        .context("`go mod download` named no folder")?;
    Ok(Path::new(folder).join(path))
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "p",
        module: "m",
        package: "./p",
        link_flags: "-X a=1",
        aliases: &["b"],
    };

    fn module() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("p")).unwrap();
        for (name, text) in [
            ("go.mod", "module m"),
            ("go.sum", "x"),
            ("p/main.go", "package main"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn whatever_decides_the_program_changes_its_hash() {
        let module = module();
        let first = PROGRAM.hash(module.path()).unwrap();
        assert_eq!(PROGRAM.hash(module.path()).unwrap(), first);
        assert_ne!(
            Program {
                link_flags: "-X a=2",
                ..PROGRAM
            }
            .hash(module.path())
            .unwrap(),
            first
        );
        assert_ne!(
            Program {
                aliases: &[],
                ..PROGRAM
            }
            .hash(module.path())
            .unwrap(),
            first
        );
        for file in ["go.mod", "go.sum", "p/main.go"] {
            let old = fs::read(module.path().join(file)).unwrap();
            fs::write(module.path().join(file), "other").unwrap();
            assert_ne!(PROGRAM.hash(module.path()).unwrap(), first, "{file}");
            fs::write(module.path().join(file), old).unwrap();
        }
        fs::write(module.path().join("README.md"), "words").unwrap();
        assert_eq!(PROGRAM.hash(module.path()).unwrap(), first);
    }

    #[test]
    fn unpinned_dependencies_are_refused() {
        let module = module();
        fs::remove_file(module.path().join("go.sum")).unwrap();
        assert!(
            PROGRAM
                .hash(module.path())
                .unwrap_err()
                .to_string()
                .contains("go.sum")
        );
    }

    #[test]
    fn every_program_has_its_module() {
        let checkout = Checkout::find().unwrap();
        for program in NEEDED.iter().chain(&ON_DEMAND) {
            program
                .hash(&checkout.programs_source().join(program.module))
                .unwrap();
        }
    }
}
