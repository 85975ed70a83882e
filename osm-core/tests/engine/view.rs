//! What proxies see of a snapshot.

use std::collections::BTreeMap;

use osm_core::{
    identity::ServiceIdentity,
    resource::{ClassId, ResourceType, Snapshot},
};

/// Encoded resources by kind and name; `None` for those not known yet.
pub(crate) type Resources = BTreeMap<(ResourceType, String), Option<Vec<u8>>>;

/// What a class gets.
pub(crate) fn resources(snapshot: &Snapshot, class: ClassId) -> Resources {
    let view = snapshot.view(class).expect("a class with a proxy has a view");
    let mut resources = Resources::new();
    for kind in ResourceType::ALL {
        for (name, slot) in view.set(kind).iter() {
            let resource = snapshot.resource(*slot);
            if let Some(resource) = resource {
                assert_eq!(
                    (resource.kind(), resource.name()),
                    (kind, name),
                    "a slot holds another resource"
                );
            }
            let waits = kind == ResourceType::Secret;
            assert!(resource.is_some() || waits, "{kind:?} {name} is missing");
            resources.insert(
                (kind, name.to_string()),
                resource.map(|resource| resource.encoded().to_vec()),
            );
        }
    }
    resources
}

/// What every proxy gets, with its identity, by uuid.
pub(crate) fn proxies(snapshot: &Snapshot) -> BTreeMap<String, (ServiceIdentity, Resources)> {
    let mut cache = BTreeMap::<ClassId, Resources>::new();
    let mut all = BTreeMap::new();
    for (uuid, proxy) in snapshot.proxies() {
        let resources = cache
            .entry(proxy.class)
            .or_insert_with(|| resources(snapshot, proxy.class));
        all.insert(uuid.to_string(), (proxy.identity.clone(), resources.clone()));
    }
    all
}

/// Every version every proxy gets, one a line.
pub(crate) fn listing(snapshot: &Snapshot) -> String {
    let mut lines = Vec::new();
    for (uuid, proxy) in snapshot.proxies() {
        let view = snapshot.view(proxy.class).expect("a view");
        for kind in ResourceType::ALL {
            for (name, slot) in view.set(kind).iter() {
                let version = snapshot
                    .resource(*slot)
                    .map(|resource| resource.version().to_string());
                lines.push(format!(
                    "{uuid} {kind:?} {name} {}\n",
                    version.unwrap_or_default()
                ));
            }
        }
    }
    lines.sort();
    lines.concat()
}
