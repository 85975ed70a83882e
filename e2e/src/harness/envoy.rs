//! A sidecar, seen through its admin endpoint.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::Kubernetes;

/// The admin endpoint's port, on the pod's loopback.
const ADMIN: u16 = 15000;

/// One sidecar.
#[derive(Clone)]
pub struct Envoy {
    kubernetes: Kubernetes,
    namespace: String,
    pod: String,
}

impl Envoy {
    /// The sidecar of a pod.
    pub fn new(kubernetes: &Kubernetes, namespace: &str, pod: &str) -> Self {
        Self {
            kubernetes: kubernetes.clone(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
        }
    }

    /// What the admin endpoint answers.
    pub async fn admin(&self, path: &str) -> Result<String> {
        self.kubernetes
            .fetch(&self.namespace, &self.pod, ADMIN, path)
            .await
            .with_context(|| format!("the sidecar of {}/{}, {path}", self.namespace, self.pod))
    }

    /// All counters and gauges.
    pub async fn stats(&self) -> Result<BTreeMap<String, u64>> {
        let text = self.admin("/stats").await?;
        Ok(text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(": ")?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect())
    }

    /// The alternative names of the certificates it presents.
    pub async fn identities(&self) -> Result<Vec<String>> {
        let shown = self.certificates("cert_chain").await?;
        let names = shown
            .iter()
            .flat_map(|certificate| certificate["subject_alt_names"].as_array().into_iter().flatten())
            .filter_map(|name| name["dns"].as_str().map(str::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The serial numbers of the CAs it trusts, in hexadecimal.
    pub async fn authorities(&self) -> Result<BTreeSet<String>> {
        let trusted = self.certificates("ca_cert").await?;
        let serials = trusted
            .iter()
            .filter_map(|certificate| certificate["serial_number"].as_str());
        Ok(serials.map(str::to_owned).collect())
    }

    /// The certificates it holds for one use, as Envoy describes them: `cert_chain` to show, `ca_cert` to trust.
    async fn certificates(&self, usage: &str) -> Result<Vec<Value>> {
        let held: Value = serde_json::from_str(&self.admin("/certs").await?)?;
        let pairs = held["certificates"].as_array().into_iter().flatten();
        let wanted = pairs.flat_map(|pair| pair[usage].as_array().into_iter().flatten());
        Ok(wanted.cloned().collect())
    }

    /// What it was configured with, endpoints included.
    pub async fn config_dump(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.admin("/config_dump?include_eds").await?,
        )?)
    }

    /// The versions of all dynamic resources, by kind and name; secrets are left out: they are one replica's own.
    pub async fn versions(&self) -> Result<BTreeMap<String, String>> {
        let dump = self.config_dump().await?;
        let mut versions = BTreeMap::new();
        collect_versions(&dump, &mut versions);
        Ok(versions)
    }

    /// Fails if it ever rejected configuration, met a deprecated field, or is not connected.
    pub async fn check_healthy(&self) -> Result<()> {
        let stats = self.stats().await?;
        let bad: Vec<String> = stats
            .iter()
            .filter(|(name, value)| {
                **value > 0
                    && (name.ends_with(".update_rejected")
                        || *name == "runtime.deprecated_feature_use"
                        || name.ends_with(".init_fetch_timeout"))
            })
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        if !bad.is_empty() {
            bail!(
                "the sidecar of {}/{} has {}",
                self.namespace,
                self.pod,
                bad.join(", ")
            );
        }
        ensure!(
            stats.get("control_plane.connected_state") == Some(&1),
            "the sidecar of {}/{} is not connected to a controller",
            self.namespace,
            self.pod
        );
        Ok(())
    }
}

fn collect_versions(value: &Value, versions: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for resource in ["cluster", "listener", "route_config", "endpoint_config"] {
                let name = map
                    .get(resource)
                    .and_then(|it| it["name"].as_str().or(it["cluster_name"].as_str()));
                if let (Some(name), Some(version)) = (name, map.get("version_info").and_then(Value::as_str)) {
                    versions.insert(format!("{resource} {name}"), version.to_owned());
                }
            }
            // A listener's name and version stand in different objects.
            if let (Some(name), Some(state)) =
                (map.get("name").and_then(Value::as_str), map.get("active_state"))
                && let Some(version) = state["version_info"].as_str()
            {
                versions.insert(format!("listener {name}"), version.to_owned());
            }
            map.values().for_each(|value| collect_versions(value, versions));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_versions(value, versions)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_found_wherever_the_dump_has_them() {
        let dump = json!({"configs": [
            {"dynamic_active_clusters": [{"version_info": "a", "cluster": {"name": "ns/svc|80"}}]},
            {"dynamic_listeners": [{"name": "inbound-listener", "active_state": {"version_info": "b"}}]},
            {"dynamic_route_configs": [{"version_info": "c", "route_config": {"name": "rds-inbound.80"}}]},
        ]});
        let mut versions = BTreeMap::new();
        collect_versions(&dump, &mut versions);
        let found: Vec<_> = versions
            .iter()
            .map(|(name, version)| (name.as_str(), version.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("cluster ns/svc|80", "a"),
                ("listener inbound-listener", "b"),
                ("route_config rds-inbound.80", "c")
            ]
        );
    }
}
