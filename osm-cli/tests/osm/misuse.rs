//! What `osm` refuses, each in one sentence on standard error, with exit status 1, before anything is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty};
use tempfile::TempDir;

/// A place with a kubeconfig of a cluster that is not there, and a `helm` of a given version that must not be used.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new(helm_version: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("kubeconfig"),
            "apiVersion: v1\nkind: Config\ncurrent-context: gone\n\
             clusters: [{name: gone, cluster: {server: 'https://127.0.0.1:1'}}]\n\
             contexts: [{name: gone, context: {cluster: gone, user: nobody}}]\n\
             users: [{name: nobody, user: {token: none}}]\n",
        )
        .unwrap();
        let helm = folder.path().join("helm");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = version ]; then echo {helm_version}; else echo \"helm was run: $*\" >&2; exit 9; fi\n"
        );
        fs::write(&helm, script).unwrap();
        fs::set_permissions(&helm, fs::Permissions::from_mode(0o755)).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn osm(&self) -> Command {
        let mut command = Command::cargo_bin("osm").unwrap();
        command
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", self.folder.path());
        command.env("KUBECONFIG", self.path("kubeconfig"));
        command
    }

    /// Runs `osm` with these arguments and expects a one-line refusal.
    #[track_caller]
    fn refuses(&self, args: &[&str], why: &str) {
        let assert = self.osm().args(args).assert().code(1).stdout(is_empty());
        let assert = assert.stderr(contains(why).and(contains("helm was run").not()));
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert_eq!(text.trim_end().lines().count(), 1, "more than one line: {text}");
    }
}

#[test]
fn values_are_refused_before_the_cluster_is_asked() {
    let place = Place::new("v3.14.0");
    for (set, why) in [
        (
            "OpenServiceMesh.osmController.autoScale.minReplicas=0",
            "minReplicas is 0: it must be from 1 to 10",
        ),
        (
            "OpenServiceMesh.osmController.autoScale.minReplicas=11",
            "minReplicas is 11: it must be from 1 to 10",
        ),
        (
            "osm.injector.autoScale.targetAverageUtilization=101",
            "is 101: it must be from 0 to 100",
        ),
        (
            "OpenServiceMesh.osmController.autoScale.minReplicas=6",
            "more than maxReplicas, which is 5",
        ),
        (
            "OpenServiceMesh.osmController.maxConnectionAge=soon",
            "OpenServiceMesh.osmController.maxConnectionAge",
        ),
        (
            "osm.osmController.maxConnectionAge=-5m",
            "osm.osmController.maxConnectionAge",
        ),
        (
            "OpenServiceMesh.osmController.replicaCount=0",
            "must be at least 1",
        ),
        (
            "OpenServiceMesh.osmControler.replicaCount=2",
            "did you mean OpenServiceMesh.osmController?",
        ),
        (
            "OpenServiceMesh.enableEgress",
            "invalid format for --set: \"OpenServiceMesh.enableEgress\" has no \"=\"",
        ),
    ] {
        place.refuses(&["install", "--set", set], why);
        place.refuses(&["mesh", "upgrade", &format!("--set={set}")], why);
    }
}

#[test]
fn a_cluster_that_is_not_there_is_no_good_finding() {
    let place = Place::new("v3.14.0");
    for args in [
        &["check"][..],
        &["check", "--ha", "--proxy", "-o", "json"],
        &["check", "-o", "short", "--wait=1s"],
        &["proxy", "status"],
        &["proxy", "status", "pod", "-n", "shop", "-o", "wide"],
    ] {
        place.refuses(args, "Could not access Kubernetes cluster");
    }
}

#[test]
fn files_of_values_are_refused_with_their_name() {
    let place = Place::new("v3.14.0");
    let file = place.path("mine.yaml");
    place.refuses(
        &["install", "-f", file.to_str().unwrap()],
        "Could not read --values",
    );
    fs::write(&file, "OpenServiceMesh: [").unwrap();
    place.refuses(
        &["install", "-f", file.to_str().unwrap()],
        "mine.yaml is not YAML",
    );
    fs::write(&file, "OpenServiceMesh: {injector: {replicaCount: 0}}").unwrap();
    place.refuses(
        &["install", "-f", file.to_str().unwrap()],
        "OpenServiceMesh.injector.replicaCount is 0",
    );
}

#[test]
fn names_that_contradict_each_other_are_refused() {
    let place = Place::new("v3.14.0");
    place.refuses(
        &["install", "--mesh-name=a", "--set=OpenServiceMesh.meshName=b"],
        "give one of them only",
    );
    place.refuses(
        &["install", "--set=osm.osmNamespace=elsewhere"],
        "give --osm-namespace instead",
    );
    place.refuses(
        &[
            "install",
            "--enforce-single-mesh=false",
            "--set=osm.enforceSingleMesh=true",
        ],
        "the same value",
    );
    place.refuses(
        &["install", "--osm-chart-path", "/nowhere"],
        "is not the folder of a chart",
    );
}

#[test]
fn helm_must_be_there_and_new_enough() {
    let place = Place::new("v3.7.2");
    place.refuses(&["install"], "is version 3.7, but osm needs 3.x from 3.8 on");
    Place::new("v2.17.0").refuses(&["install"], "is version 2.17");
    Place::new("v4.0.0").refuses(&["install"], "is version 4.0");
    Place::new("gibberish").refuses(&["install"], "does not say its version");
    fs::remove_file(place.path("helm")).unwrap();
    place.refuses(&["install"], "helm was not found on the PATH");
    place.refuses(
        &["install", "--helm", "/nowhere/helm"],
        "Could not run helm at /nowhere/helm",
    );
}

#[test]
fn an_unreachable_cluster_is_said_to_be_so() {
    let place = Place::new("v3.14.0");
    let why =
        "Could not access Kubernetes cluster, check kubeconfig: no good answer from https://127.0.0.1:1";
    for args in [
        &["install"][..],
        &["install", "--dry-run"],
        &["mesh", "upgrade"],
        &["mesh", "list"],
        &["uninstall", "mesh"],
        &["namespace", "add", "shop"],
        &["namespace", "list"],
        &["metrics", "enable", "--namespace", "shop"],
        &["proxy", "get", "config_dump", "pod"],
    ] {
        place.refuses(args, why);
    }
    place
        .osm()
        .args(["version"])
        .assert()
        .code(1)
        .stdout(contains("CLI Version: v"))
        .stderr(contains(why));
    place.refuses(
        &["mesh", "list", "--context", "other"],
        "Error fetching kubeconfig",
    );
    place.refuses(
        &["mesh", "list", "--kubeconfig", "/nowhere"],
        "Error fetching kubeconfig",
    );
}

#[test]
fn arguments_are_checked() {
    let place = Place::new("v3.14.0");
    for (args, why) in [
        (
            &["install", "--mesh-name", "My_Mesh"][..],
            "lower case letters, digits and dashes",
        ),
        (&["install", "--mesh-name", ""], "lower case letters"),
        (&["install", "--osm-namespace=-x"], "lower case letters"),
        (&["install", "--timeout", "soon"], "a duration such as"),
        (&["install", "--timeout", "0s"], "a duration such as"),
        (&["install", "--set"], "a value is required"),
        (&["namespace", "add"], "required arguments"),
        (&["metrics", "enable"], "--namespace"),
        (&["proxy", "get", "config_dump"], "required arguments"),
        (&["completion", "tcsh"], "invalid value"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&[], "Usage"),
    ] {
        place.osm().args(args).assert().code(1).stderr(contains(why));
    }
}

#[test]
fn a_managed_mesh_is_left_to_its_manager() {
    let place = Place::new("v3.14.0");
    let config = place.path("config.yaml");
    fs::write(&config, "install: {kind: managed, namespace: mesh-home}").unwrap();
    let osm = |args: &[&str]| {
        let mut command = place.osm();
        command.env("OSM_CONFIG", &config).args(args);
        command.assert()
    };
    osm(&["install"])
        .code(1)
        .stderr(contains("OSM CANNOT be installed in a managed environment"));
    osm(&["uninstall", "mesh"])
        .code(1)
        .stderr(contains("OSM CANNOT be uninstalled in a managed environment"));
    osm(&["env"]).success().stdout(contains("namespace: mesh-home"));
    fs::write(&config, "install: {kind: rented}").unwrap();
    osm(&["env"])
        .code(1)
        .stderr(contains("must be self-hosted or managed"));
}

#[test]
fn what_needs_no_cluster_works_without_one() {
    let place = Place::new("v3.14.0");
    place
        .osm()
        .args(["version", "--client-only"])
        .assert()
        .success()
        .stdout(contains("CLI Version: v"));
    place
        .osm()
        .args(["version", "--client-only", "-o", "json"])
        .assert()
        .success()
        .stdout(contains("\"version\""));
    place
        .osm()
        .args(["env"])
        .assert()
        .success()
        .stdout(contains("---\ninstall:").and(contains("osm-system")));
    for shell in ["bash", "zsh", "fish", "powershell"] {
        place
            .osm()
            .args(["completion", shell])
            .assert()
            .success()
            .stdout(contains("osm"));
    }
    assert!(!Path::new("/nowhere").exists());
}
