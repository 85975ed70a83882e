//! The default MeshConfig: made from the chart's preset if there is none.
//!
//! Invariant: an existing MeshConfig is never touched; two replicas that do this at once make one object.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use osm_core::api::{
    MeshConfig,
    mesh_config::MeshConfigSpec,
    names::{PRESET_MESH_CONFIG, PRESET_MESH_CONFIG_KEY},
};
use osm_runtime::{
    CancellationToken,
    backoff::Backoff,
    client::{CALL, ClientError, within},
    component::Flags,
};

/// Why there is no default MeshConfig.
#[derive(Debug, thiserror::Error)]
enum PresetError {
    #[error("the ConfigMap {PRESET_MESH_CONFIG} has no key {PRESET_MESH_CONFIG_KEY}; reinstall the chart")]
    NoKey,
    #[error("the key {PRESET_MESH_CONFIG_KEY} of the ConfigMap {PRESET_MESH_CONFIG} is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Makes the MeshConfig if there is none, trying until it is there or `stop`.
pub async fn ensure(client: Client, flags: &Flags, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let attempts = async {
        while let Err(error) = attempt(&client, flags).await {
            tracing::warn!(%error, "the default MeshConfig was not made; trying again");
            tokio::time::sleep(backoff.next_wait()).await;
        }
    };
    tokio::select! { () = attempts => {}, () = stop.cancelled() => {} }
}

async fn attempt(client: &Client, flags: &Flags) -> Result<(), PresetError> {
    let configs: Api<MeshConfig> = Api::namespaced(client.clone(), &flags.osm_namespace);
    if within(CALL, configs.get_metadata_opt(&flags.osm_config_name))
        .await?
        .is_some()
    {
        return Ok(());
    }
    let presets: Api<ConfigMap> = Api::namespaced(client.clone(), &flags.osm_namespace);
    let preset = match within(CALL, presets.get_opt(PRESET_MESH_CONFIG)).await? {
        Some(preset) => preset,
        None => {
            tracing::info!("there is neither a MeshConfig nor a preset of one: the defaults hold");
            return Ok(());
        }
    };
    let text = preset
        .data
        .unwrap_or_default()
        .remove(PRESET_MESH_CONFIG_KEY)
        .ok_or(PresetError::NoKey)?;
    let mut config = DynamicObject::new(&flags.osm_config_name, &ApiResource::erase::<MeshConfig>(&()));
    config.metadata.labels = Some(flags.labels());
    config.data = serde_json::json!({ "spec": parse(&text)? });
    let configs: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        &flags.osm_namespace,
        &ApiResource::erase::<MeshConfig>(&()),
    );
    match within(CALL, configs.create(&PostParams::default(), &config)).await {
        Ok(_) => tracing::info!(name = flags.osm_config_name, "made the default MeshConfig"),
        Err(error) if error.is_conflict() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The spec as it is written: with the fields it leaves out filled in, the API server would refuse it, since an empty text
/// is none of the values it allows.
fn parse(text: &str) -> Result<serde_json::Value, serde_json::Error> {
    let _readable: MeshConfigSpec = serde_json::from_str(text)?;
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_read_as_the_chart_writes_them() {
        let text = r#"{"traffic": {"enableEgress": true, "enablePermissiveTrafficPolicyMode": true},
            "certificate": {"serviceCertValidityDuration": "24h"}, "featureFlags": {"enableWASMStats": false}}"#;
        let spec = parse(text).unwrap();
        assert_eq!(spec["traffic"]["enablePermissiveTrafficPolicyMode"], true);
        assert_eq!(spec["sidecar"], serde_json::Value::Null, "nothing is filled in");
        assert!(parse("{").is_err());
    }
}
