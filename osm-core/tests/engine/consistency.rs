//! Whether what a class gets hangs together: whatever a resource names is there, and what is there is named.

use std::collections::{BTreeMap, BTreeSet};

use osm_core::{
    envoy::json,
    resource::{ClassId, Resource, ResourceType, Snapshot, Version},
};
use osm_proto::envoy::{
    config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    },
    extensions::transport_sockets::tls::v3::Secret,
};
use prost::Message;
use serde_json::Value;

type References = BTreeSet<(ResourceType, String)>;

/// The references of resources seen, by version.
#[derive(Default)]
pub(crate) struct Consistency {
    references: BTreeMap<Version, References>,
}

impl Consistency {
    pub(crate) fn check(&mut self, snapshot: &Snapshot, class: ClassId) {
        let view = snapshot.view(class).expect("a view");
        let mut named = References::new();
        let mut present = References::new();
        for kind in ResourceType::ALL {
            for (name, slot) in view.set(kind).iter() {
                present.insert((kind, name.to_string()));
                if let Some(resource) = snapshot.resource(*slot) {
                    let references = self
                        .references
                        .entry(resource.version())
                        .or_insert_with(|| references(resource));
                    named.extend(references.iter().cloned());
                }
            }
        }
        let missing: Vec<_> = named.difference(&present).collect();
        assert!(missing.is_empty(), "named and not there: {missing:?}");
        // Clusters and listeners are subscribed to as a whole; an idle proxy may name neither certificate nor roots.
        let kinds = [ResourceType::Endpoint, ResourceType::Route, ResourceType::Secret];
        let own = [
            "service-cert",
            "root-cert-for-mtls-inbound",
            "root-cert-for-mtls-outbound",
        ];
        let idle = present
            .difference(&named)
            .filter(|(kind, name)| kinds.contains(kind) && !own.contains(&&**name));
        let idle: Vec<_> = idle.collect();
        assert!(idle.is_empty(), "there and not named: {idle:?}");
    }
}

fn references(resource: &Resource) -> References {
    fn json_of<M: Message + prost::Name + Default>(resource: &Resource) -> Value {
        let any = prost_types::Any::decode(resource.any()).expect("an Any");
        json::to_json(&M::decode(&any.value[..]).expect("decodes"))
    }
    let value = match resource.kind() {
        ResourceType::Cluster => json_of::<Cluster>(resource),
        ResourceType::Endpoint => json_of::<ClusterLoadAssignment>(resource),
        ResourceType::Listener => json_of::<Listener>(resource),
        ResourceType::Route => json_of::<RouteConfiguration>(resource),
        ResourceType::Secret => json_of::<Secret>(resource),
    };
    match resource.kind() {
        ResourceType::Listener => distinct_matches(&value),
        ResourceType::Route => distinct_domains(&value),
        _ => {}
    }
    let mut references = References::new();
    walk(&value, &mut |key, value| {
        let text = |value: &Value| value.as_str().expect("a name").to_owned();
        match key {
            "routeConfigName" => drop(references.insert((ResourceType::Route, text(value)))),
            "tlsCertificateSdsSecretConfigs" => {
                for config in value.as_array().expect("a list") {
                    references.insert((ResourceType::Secret, text(&config["name"])));
                }
            }
            "validationContextSdsSecretConfig" => {
                references.insert((ResourceType::Secret, text(&value["name"])));
            }
            "cluster" | "collectorCluster" => drop(references.insert((ResourceType::Cluster, text(value)))),
            "clusterName" if resource.kind() == ResourceType::Listener => {
                references.insert((ResourceType::Cluster, text(value)));
            }
            "weightedClusters" => {
                for cluster in value["clusters"].as_array().expect("a list") {
                    references.insert((ResourceType::Cluster, text(&cluster["name"])));
                }
            }
            "edsClusterConfig" => {
                let name = value["serviceName"].as_str().unwrap_or(resource.name());
                references.insert((ResourceType::Endpoint, name.to_owned()));
            }
            _ => {}
        }
    });
    references
}

fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                visit(key, value);
                walk(value, visit);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

/// Envoy rejects a listener in which two filter chains match one connection alike.
fn distinct_matches(listener: &Value) {
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    for chain in listener["filterChains"].as_array().into_iter().flatten() {
        assert!(
            names.insert(chain["name"].to_string()),
            "two chains {}",
            chain["name"]
        );
        let criteria = &chain["filterChainMatch"];
        let none = vec![Value::Null];
        let ranges = criteria["prefixRanges"].as_array().unwrap_or(&none);
        let servers = criteria["serverNames"].as_array().unwrap_or(&none);
        for range in ranges {
            for server in servers {
                let one = format!("{} {range} {server}", criteria["destinationPort"]);
                assert!(seen.insert(one.clone()), "two chains match {one}");
            }
        }
    }
}

/// Envoy rejects a route configuration in which two virtual hosts have a domain in common.
fn distinct_domains(routes: &Value) {
    let mut seen = BTreeSet::new();
    for host in routes["virtualHosts"].as_array().into_iter().flatten() {
        for domain in host["domains"].as_array().expect("domains") {
            assert!(seen.insert(domain.to_string()), "two virtual hosts for {domain}");
        }
    }
}
