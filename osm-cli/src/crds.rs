//! The custom resource definitions: Helm creates them once and never again, so they are applied here, before Helm runs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use tokio::time::{Instant, sleep};

use crate::chart::Chart;
use crate::cluster::Cluster;
use crate::progress::Step;

/// Who owns the fields of the definitions.
const FIELD_MANAGER: &str = "osm-cli";
/// How long the API server may take to serve a new definition.
const ESTABLISHED: Duration = Duration::from_secs(30);

/// Reads the chart's definitions.
pub(crate) fn read(chart: &Chart) -> Result<Vec<CustomResourceDefinition>> {
    chart
        .crds()?
        .into_iter()
        .map(|(name, text)| {
            serde_saphyr::from_str(&text)
                .with_context(|| format!("crds/{name} is not a CustomResourceDefinition"))
        })
        .collect()
}

/// Applies the definitions and waits until the API server serves them.
pub(crate) async fn apply(cluster: &Cluster, definitions: &[CustomResourceDefinition]) -> Result<()> {
    let step = Step::begin(format!(
        "Applying {} custom resource definitions",
        definitions.len()
    ));
    let result = apply_all(cluster, definitions).await;
    match &result {
        Ok(()) => step.done(),
        Err(_) => step.failed(),
    }
    result
}

async fn apply_all(cluster: &Cluster, definitions: &[CustomResourceDefinition]) -> Result<()> {
    let api = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    for definition in definitions {
        let name = definition.name_any();
        api.patch(&name, &params, &Patch::Apply(definition))
            .await
            .with_context(|| format!("Could not apply the custom resource definition {name}"))?;
    }
    let deadline = Instant::now() + ESTABLISHED;
    for definition in definitions {
        let name = definition.name_any();
        while !is_established(&api.get(&name).await?) {
            if Instant::now() > deadline {
                bail!("The API server does not serve {name}: see `kubectl describe crd {name}`");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}
