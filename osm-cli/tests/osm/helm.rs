//! The real `helm` and the chart, for the tests that render it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use serde_json::Value;

/// The components: their key among the values, and the name of their objects.
pub(crate) const COMPONENTS: [(&str, &str); 2] =
    [("osmController", "osm-controller"), ("injector", "osm-injector")];

/// A file of this checkout.
pub(crate) fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The chart's folder.
pub(crate) fn chart() -> PathBuf {
    checkout("charts/osm")
}

/// The `helm` that `make unit-test` builds, or any other.
pub(crate) fn helm() -> PathBuf {
    let named = env::var_os("OSM_HELM").map(PathBuf::from);
    let local = Some(checkout(".local/bin/helm"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("helm"));
    named
        .into_iter()
        .chain(local)
        .chain(cached())
        .chain(on_path)
        .find(|path| path.is_file())
        .expect("no helm: run `make unit-test`, which builds it, or name one in $OSM_HELM")
}

/// Every helm in the cache of built programs.
fn cached() -> Vec<PathBuf> {
    let base = env::var_os("OSM_CACHE").map(PathBuf::from).or_else(|| {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .map(|base| base.join("osm-e2e"))
    });
    let Some(entries) = base.and_then(|base| fs::read_dir(base.join("programs")).ok()) else {
        return Vec::new();
    };
    let folders = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("helm-"));
    folders.map(|entry| entry.path().join("helm")).collect()
}

/// Runs `helm template` on the chart with these `--set` arguments.
pub(crate) fn template(sets: &[&str]) -> Output {
    let mut command = Command::new(helm());
    command.arg("template").arg("osm").arg(chart());
    command.args(["--namespace", "osm-system", "--kube-version", "1.36.0"]);
    command.args(sets.iter().flat_map(|set| ["--set", set]));
    command.output().expect("helm runs")
}

/// The chart's objects with these `--set` arguments.
#[derive(Debug, PartialEq)]
pub(crate) struct Rendered(pub(crate) Vec<Value>);

/// Renders the chart.
pub(crate) fn render(sets: &[&str]) -> Rendered {
    let output = template(sets);
    assert!(
        output.status.success(),
        "{sets:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("the chart is text");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("the chart renders to YAML");
    Rendered(
        documents
            .into_iter()
            .filter(|document| !document.is_null())
            .collect(),
    )
}

impl Rendered {
    /// The object of that kind and name, if there is one.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    /// The object of that kind and name.
    pub(crate) fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }
}

/// Whether a field of an object, a list, holds a value.
pub(crate) fn has(rule: &Value, field: &str, value: &str) -> bool {
    rule[field]
        .as_array()
        .into_iter()
        .flatten()
        .any(|found| found == value)
}
