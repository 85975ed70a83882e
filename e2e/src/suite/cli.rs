//! `osm`, as its users know it.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::harness::mesh::{NAME, NAMESPACE};
use crate::harness::{Case, Workload};

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
            "a namespace that is not there",
        ),
        (
            vec!["namespace", "add", NAMESPACE],
            "the control plane's namespace",
        ),
        (
            vec!["namespace", "add", &one, "--mesh-name", "no-such-mesh"],
            "a mesh that is not there",
        ),
    ] {
        let refused = mesh.osm(&arguments).await?;
        ensure!(
            refused.status.is_some_and(|status| status != 0),
            "{why} was not refused: {refused:?}"
        );
        ensure!(
            !refused.stderr.trim().is_empty() && !refused.stderr.contains("panicked"),
            "{why}: {refused:?}"
        );
    }
    Ok(())
}

/// `osm mesh list`, `osm version`, `osm proxy get`.
pub(super) async fn mesh_list_version_and_proxy(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    let namespace = case.namespace("all").await?;
    case.run(&[(&namespace, Workload::client("pod"))]).await?;
    let list = mesh.osm_ok(&["mesh", "list"]).await?;
    ensure!(list.contains(NAME) && list.contains(NAMESPACE), "{list}");
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
    ensure!(missing.status != Some(0), "{missing:?}");
    Ok(())
}
