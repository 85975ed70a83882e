//! `osm`, as its users know it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::kubernetes::field;
use crate::harness::mesh::{NAME, NAMESPACE};
use crate::harness::wait::SETTLED;
use crate::harness::{Case, Workload, eventually};

/// `osm namespace add, list, ignore, remove`.
pub(super) async fn namespaces(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    let (one, two) = (
        case.plain_namespace("one").await?,
        case.plain_namespace("two").await?,
    );
    mesh.osm_ok(&["namespace", "add", &one, &two]).await?;
    let labels = async |namespace: &str| {
        let namespace = mesh.kubernetes.get("v1/Namespace", None, namespace).await?;
        anyhow::Ok(
            namespace
                .map(|namespace| namespace["metadata"].clone())
                .unwrap_or(Value::Null),
        )
    };
    let made = labels(&one).await?;
    ensure!(
        made["labels"]["openservicemesh.io/monitored-by"] == NAME,
        "{made}"
    );
    ensure!(
        made["annotations"]["openservicemesh.io/sidecar-injection"] == "enabled",
        "{made}"
    );
    let listed = mesh.osm_ok(&["namespace", "list"]).await?;
    ensure!(listed.contains(&one) && listed.contains(&two), "{listed}");

    // Adding what is there already is said, and no error.
    mesh.osm_ok(&["namespace", "add", &one]).await?;
    mesh.osm_ok(&["namespace", "remove", &two]).await?;
    let removed = labels(&two).await?;
    ensure!(
        removed["labels"]["openservicemesh.io/monitored-by"].is_null(),
        "{removed}"
    );
    mesh.osm_ok(&["namespace", "ignore", &two]).await?;
    let ignored = labels(&two).await?;
    ensure!(
        ignored["labels"]["openservicemesh.io/ignore"] == "true",
        "{ignored}"
    );

    for (arguments, why) in [
        (
            vec!["namespace", "add", "no-such-namespace"],
            "There is no namespace [no-such-namespace]".to_owned(),
        ),
        (
            vec!["namespace", "add", NAMESPACE],
            format!("Namespace [{NAMESPACE}] has the control plane of mesh [{NAME}]"),
        ),
        (
            vec!["namespace", "add", &one, "--mesh-name", "no-such-mesh"],
            "There is no mesh [no-such-mesh]".to_owned(),
        ),
        (
            vec!["namespace", "add", &two],
            format!("Cannot add ignored namespace [{two}]"),
        ),
    ] {
        let refused = mesh.osm(&arguments).await?;
        ensure!(
            refused.status == Some(1)
                && refused.stderr.contains(&why)
                && refused.stderr.trim().lines().count() == 1,
            "{arguments:?} should have been refused with `{why}` alone: {refused:?}"
        );
    }
    let refused = labels(&two).await?;
    ensure!(
        refused["labels"]["openservicemesh.io/monitored-by"].is_null(),
        "a namespace was added though that was refused: {refused}"
    );
    Ok(())
}

/// `osm mesh list`, `osm version`, `osm proxy get`.
pub(super) async fn mesh_list_version_and_proxy(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    let namespace = case.namespace("all").await?;
    case.run(&[(&namespace, Workload::client("pod"))]).await?;
    let list = mesh.osm_ok(&["mesh", "list"]).await?;
    // Its row in one table or the other: name, namespace, and a list at the end.
    let listed = |item: &str| {
        list.lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            columns.starts_with(&[NAME, NAMESPACE])
                && columns
                    .last()
                    .is_some_and(|items| items.split(',').any(|it| it == item))
        })
    };
    ensure!(listed(&namespace), "{namespace} is not listed as added: {list}");
    ensure!(
        listed("TrafficTarget:access.smi-spec.io/v1alpha3"),
        "TrafficTarget is not listed as supported: {list}"
    );
    let version = mesh.osm_ok(&["version"]).await?;
    ensure!(
        version.contains("CLI Version") && version.contains(NAMESPACE),
        "{version}"
    );
    let dump = mesh
        .osm_ok(&["proxy", "get", "config_dump", "pod", "-n", &namespace])
        .await?;
    let dump: Value = serde_json::from_str(&dump)?;
    ensure!(
        dump["configs"]
            .as_array()
            .is_some_and(|configs| !configs.is_empty()),
        "no configuration in the dump"
    );
    let missing = mesh
        .osm(&["proxy", "get", "config_dump", "no-such-pod", "-n", &namespace])
        .await?;
    ensure!(
        missing.status == Some(1) && missing.stderr.contains("There is no pod [no-such-pod]"),
        "{missing:?}"
    );
    Ok(())
}

/// `osm check --ha` and `osm proxy status` on the mesh the tests run on: what is good is found good, what is wrong is named.
pub(super) async fn check_ha(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    let namespace = case.namespace("all").await?;
    case.run(&[(&namespace, Workload::client("pod"))]).await?;

    let check = async |arguments: &[&str]| -> Result<Value> {
        let outcome = mesh.osm(&[&["check", "-o", "json"], arguments].concat()).await?;
        serde_json::from_str(&outcome.stdout).with_context(|| format!("{outcome:?}"))
    };
    let verdict = |report: &Value, code: &str| -> Result<String> {
        let findings = report["findings"].as_array().context("no findings")?;
        let finding = findings.iter().find(|finding| finding["code"] == code);
        let finding = finding.with_context(|| format!("no {code} in {report}"))?;
        Ok(format!(
            "{}: {}",
            field(finding, "/verdict")?,
            finding["why"].as_str().unwrap_or_default()
        ))
    };
    // Sidecars of other tests come and go; what is judged here does not depend on them.
    let good = [
        "osm-k8s-version",
        "osm-k8s-clocks",
        "osm-cp-rollout",
        "osm-cp-config",
        "osm-cp-answers",
        "osm-cp-ready",
        "osm-cp-version",
        "osm-cp-root",
        "osm-cp-root-life",
        "osm-cp-certificates",
        "osm-cp-caches",
        "osm-cp-clocks",
        "osm-cp-leaders",
        "osm-cp-webhook-bundle",
        "osm-cp-webhook-scope",
        "osm-outage-budget",
        "osm-outage-reconnect",
        "osm-ha-replicas",
        "osm-ha-failure-policy",
    ];
    eventually("a mesh that is found good", SETTLED, async || {
        let report = check(&["--ha", "--proxy"]).await?;
        for code in good {
            let verdict = verdict(&report, code)?;
            ensure!(verdict.starts_with("ok"), "{code} is {verdict}");
        }
        ensure!(
            report["outageBudgetSeconds"] == 43_200,
            "half of 24 hours: {report}"
        );
        Ok(())
    })
    .await?;
    let text = mesh.osm(&["check"]).await?.stdout;
    ensure!(
        text.contains("√ one root on all replicas") && text.contains("Status check results are"),
        "{text}"
    );

    // A row for the sidecar, in step.
    eventually("a sidecar that is in step", SETTLED, async || {
        let shown = mesh
            .osm_ok(&["proxy", "status", "pod", "-n", &namespace, "-o", "json"])
            .await?;
        let shown: Value = serde_json::from_str(&shown)?;
        let row = &shown["proxies"][0];
        ensure!(
            row["controller"]
                .as_str()
                .is_some_and(|controller| controller.starts_with("osm-controller-")),
            "{shown}"
        );
        // It serves nobody and may call nobody: no endpoints, routes or secrets.
        for kind in ["CDS", "LDS"] {
            ensure!(row["kinds"][kind]["state"] == "synced", "{kind} in {shown}");
        }
        ensure!(
            row["certificateLeftSeconds"]
                .as_i64()
                .is_some_and(|left| left > 40_000),
            "{shown}"
        );
        Ok(())
    })
    .await?;
    let table = mesh.osm_ok(&["proxy", "status", "-n", &namespace]).await?;
    ensure!(table.contains("CERT LEFT") && table.contains("synced"), "{table}");
    let missing = mesh
        .osm(&["proxy", "status", "no-such-pod", "-n", &namespace])
        .await?;
    ensure!(
        missing.status == Some(1) && missing.stderr.contains("There is no running pod"),
        "{missing:?}"
    );

    // A pod that was there before its namespace joined is found, told by an event, and named with what to do.
    let late = case.plain_namespace("late").await?;
    case.start(&late, &Workload::client("bystander")).await?;
    mesh.osm_ok(&["namespace", "add", &late]).await?;
    eventually(
        "the pod without a sidecar in the findings",
        Duration::from_secs(60),
        async || {
            let report = check(&[]).await?;
            let verdict = verdict(&report, "osm-dp-sidecars")?;
            ensure!(
                verdict.starts_with("warning") && verdict.contains(&format!("{late}/bystander")),
                "{verdict}"
            );
            Ok(())
        },
    )
    .await?;
    eventually(
        "the event on the pod without a sidecar",
        Duration::from_secs(120),
        async || {
            let events = mesh.kubernetes.list("v1/Event", Some(&late), "").await?;
            let missing = events.iter().any(|event| {
                event["reason"] == "SidecarMissing" && event["involvedObject"]["name"] == "bystander"
            });
            ensure!(missing, "{} events, none of them SidecarMissing", events.len());
            Ok(())
        },
    )
    .await
}
