//! How far the connected sidecars have followed a change of roots.
//!
//! Invariant: a sidecar that is not known to have the present roots and certificates counts as behind.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use osm_core::{
    api::names::{ROOT_CERTIFICATE_INBOUND, SERVICE_CERTIFICATE},
    certificate::{TrustBundle, rotation::progress::Count},
    resource::{ClassId, Resource, ResourceType, Snapshot},
};
use osm_runtime::roots::Usage;

use crate::{
    ads::{Connection, Registry, StreamStatus},
    mesh::Mesh,
};

/// Streams that are asked at a time.
const CONCURRENT: usize = 32;

/// Counts the sidecars connected here that have acknowledged everything the mesh says under these roots.
pub async fn observe(registry: Registry, mesh: Mesh, roots: TrustBundle) -> Usage {
    let connections = registry.connections();
    let total = connections.len() as u64;
    let Some(snapshot) = mesh.snapshot() else {
        let proxies = Some(Count { total, behind: total });
        return Usage {
            proxies,
            secrets: None,
        };
    };
    let mut classes = BTreeMap::new();
    let published: Vec<(Connection, bool)> = connections
        .into_iter()
        .filter_map(|connection| {
            let class = snapshot.proxy(connection.proxy.uuid)?.class;
            let uses_secrets = *classes
                .entry(class)
                .or_insert_with(|| holds(&snapshot, class, &roots).then(|| names_secrets(&snapshot, class)));
            Some((connection, uses_secrets?))
        })
        .collect();
    let current = stream::iter(published)
        .map(|(connection, uses_secrets)| async move {
            connection
                .status()
                .await
                .is_some_and(|status| is_current(&status, uses_secrets))
        })
        .buffer_unordered(CONCURRENT)
        .filter(|current| std::future::ready(*current))
        .count()
        .await as u64;
    let behind = total.saturating_sub(current);
    let proxies = Some(Count { total, behind });
    Usage {
        proxies,
        secrets: None,
    }
}

/// Whether what is published for a class has these roots. All its validation contexts change together.
fn holds(snapshot: &Snapshot, class: ClassId, roots: &TrustBundle) -> bool {
    let Some(resource) = snapshot
        .view(class)
        .and_then(|view| view.set(ResourceType::Secret).slot(ROOT_CERTIFICATE_INBOUND))
        .and_then(|slot| snapshot.resource(slot))
    else {
        return false;
    };
    let pem = roots.pem().as_bytes();
    !pem.is_empty() && contains(resource, pem)
}

/// Whether a sidecar of this class uses certificates of the mesh. Envoy asks for none where no cluster and no listener names
/// one, as in a pod that may call nobody and is called by nobody.
fn names_secrets(snapshot: &Snapshot, class: ClassId) -> bool {
    snapshot.view(class).is_some_and(|view| {
        [ResourceType::Cluster, ResourceType::Listener]
            .into_iter()
            .flat_map(|kind| view.set(kind).iter())
            .filter_map(|(_, slot)| snapshot.resource(*slot))
            .any(|resource| contains(resource, SERVICE_CERTIFICATE.as_bytes()))
    })
}

fn contains(resource: &Resource, part: &[u8]) -> bool {
    resource
        .any_bytes()
        .windows(part.len())
        .any(|window| window == part)
}

/// Whether a stream has acknowledged the secrets it was sent; of a sidecar that is to use none, what else it was sent:
/// what it had before may have named some.
fn is_current(status: &StreamStatus, uses_secrets: bool) -> bool {
    let has_taken = |wanted: ResourceType| {
        let mut opened = status.kinds.iter().filter(|kind| kind.kind == wanted);
        opened.any(|kind| !kind.in_flight && kind.rejected.is_empty())
    };
    if uses_secrets {
        has_taken(ResourceType::Secret)
    } else {
        has_taken(ResourceType::Cluster) && has_taken(ResourceType::Listener)
    }
}
