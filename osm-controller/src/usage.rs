//! How far the connected sidecars have followed a change of roots.
//!
//! Invariant: a sidecar that is not known to have the present roots and certificates counts as behind.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use osm_core::{
    api::names::ROOT_CERTIFICATE_INBOUND,
    certificate::{TrustBundle, rotation::progress::Count},
    resource::{ClassId, ResourceType, Snapshot},
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
    let published: Vec<Connection> = connections
        .into_iter()
        .filter(|connection| match snapshot.proxy(connection.proxy.uuid) {
            Some(entry) => *classes
                .entry(entry.class)
                .or_insert_with(|| holds(&snapshot, entry.class, &roots)),
            None => false,
        })
        .collect();
    let current = stream::iter(published)
        .map(|connection| async move {
            connection
                .status()
                .await
                .is_some_and(|status| is_current(&status))
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
    let (bytes, pem) = (resource.any_bytes(), roots.pem().as_bytes());
    !pem.is_empty() && bytes.windows(pem.len()).any(|window| window == pem)
}

/// Whether a stream has acknowledged the secrets it was sent.
fn is_current(status: &StreamStatus) -> bool {
    let mut secrets = status
        .kinds
        .iter()
        .filter(|kind| kind.kind == ResourceType::Secret);
    secrets.any(|kind| !kind.in_flight && kind.rejected.is_empty())
}
