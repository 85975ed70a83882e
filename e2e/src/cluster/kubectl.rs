//! Asking the API server, by way of `kubectl`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::command::{command, feed, output};

/// `kubectl` for one cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// The program and the cluster's kubeconfig.
    pub fn new(program: impl Into<PathBuf>, kubeconfig: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.into(),
        }
    }

    /// The command, to be run in some other way than those below.
    pub fn command<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = command(&self.program, arguments);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs it and returns what it printed.
    pub fn run<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Applies manifests, which may be YAML or JSON.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        feed(
            &mut self.command(["apply", "--server-side", "--force-conflicts", "-f", "-"]),
            manifests.as_bytes(),
        )
    }

    /// Whether a path of the API server answers well within a few seconds.
    pub fn answers(&self, path: &str) -> bool {
        self.run(["get", "--raw", path, "--request-timeout=5s"]).is_ok()
    }
}
