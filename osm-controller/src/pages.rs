//! The debug pages: read-only JSON on the pod's loopback, while MeshConfig switches them on. What `osm` itself asks for is
//! in [`crate::connections`].
//!
//! Invariant: no secret is shown (law 11); nothing is computed that costs more than reading what is there.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use osm_core::{
    envoy::json::to_json,
    resource::{Resource, ResourceType},
};
use osm_proto::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use prost::{Message, Name};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    ads::{Ads, Connection, StreamStatus, kind_name},
    certificates::Certificates,
    mesh::Mesh,
};

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Pages {
    /// The mesh.
    pub mesh: Mesh,
    /// The streams.
    pub ads: Ads,
    /// The certificates.
    pub certificates: Certificates,
}

/// Each page and what it shows.
const INDEX: [(&str, &str); 8] = [
    (
        "/debug/proxies",
        "the proxies of the mesh, and which are connected here",
    ),
    ("/debug/xds", "how each connected proxy's stream stands"),
    ("/debug/config", "the configuration of one proxy: ?proxy=<uuid>"),
    ("/debug/certs", "the service certificates held in memory"),
    ("/debug/namespaces", "how many proxies each namespace has"),
    ("/debug/problems", "objects with something wrong"),
    ("/debug/settings", "what MeshConfig says about the control plane"),
    ("/debug/snapshot", "the size of what was published last"),
];

impl Pages {
    /// The pages.
    pub fn router(self) -> Router {
        Router::new()
            .route("/debug", get(async || Json(BTreeMap::from(INDEX))))
            .route("/debug/proxies", get(proxies))
            .route("/debug/proxy", get(proxies))
            .route("/debug/xds", get(streams))
            .route("/debug/config", get(config))
            .route("/debug/certs", get(certificates))
            .route("/debug/namespaces", get(namespaces))
            .route("/debug/problems", get(problems))
            .route("/debug/settings", get(settings))
            .route("/debug/snapshot", get(snapshot))
            .with_state(self)
    }
}

/// `/smi/version`: the versions of SMI that are spoken.
pub fn smi_versions() -> Router {
    let versions = json!({
        "TrafficTarget": "access.smi-spec.io/v1alpha3",
        "HTTPRouteGroup": "specs.smi-spec.io/v1alpha4",
        "TCPRoute": "specs.smi-spec.io/v1alpha4",
        "TrafficSplit": "split.smi-spec.io/v1alpha2",
    });
    Router::new().route("/smi/version", get(async move || Json(versions)))
}

async fn proxies(State(pages): State<Pages>) -> Json<Value> {
    let connected: BTreeMap<_, _> = pages
        .ads
        .registry()
        .connections()
        .into_iter()
        .map(|connection| (connection.proxy.uuid, connection))
        .collect();
    let Some(snapshot) = pages.mesh.snapshot() else {
        return Json(json!([]));
    };
    let mut all: Vec<_> = snapshot.proxies().collect();
    all.sort_by_key(|(uuid, _)| **uuid);
    let row = |(uuid, entry): (&Uuid, &osm_core::resource::ProxyEntry)| {
        let connection = connected.get(uuid);
        json!({
            "uuid": uuid,
            "identity": entry.identity.to_string(),
            "class": entry.class.0,
            "connected": connection.map(|connection| connection.since.to_string()),
            "address": connection.map(|connection| connection.address.to_string()),
            "protocol": connection.map(|connection| connection.variant),
        })
    };
    Json(all.into_iter().map(row).collect())
}

async fn streams(State(pages): State<Pages>) -> Json<Value> {
    let newest = pages.mesh.snapshot().map_or(0, |snapshot| snapshot.revision);
    let mut rows = Vec::new();
    for connection in pages.ads.registry().connections() {
        rows.push(stream(&connection, connection.status().await.as_ref(), newest));
    }
    Json(rows.into())
}

fn stream(connection: &Connection, status: Option<&StreamStatus>, newest: u64) -> Value {
    let kinds = status.map(|status| {
        let kind = |kind: &osm_core::xds::KindStatus| {
            let state = match (kind.rejected.is_empty(), kind.in_flight) {
                (false, _) => "rejected",
                (true, true) => "sent",
                (true, false) => "synced",
            };
            let rejected: Vec<_> = kind
                .rejected
                .iter()
                .map(|(name, version)| json!({"name": name.as_ref(), "version": version.to_string()}))
                .collect();
            let value = json!({
                "state": state, "wildcard": kind.wildcard, "names": kind.names, "revision": kind.revision,
                "rejected": rejected,
            });
            (kind_name(kind.kind).to_owned(), value)
        };
        status.kinds.iter().map(kind).collect::<serde_json::Map<_, _>>()
    });
    json!({
        "proxy": connection.proxy.to_string(),
        "since": connection.since.to_string(),
        "newestRevision": newest,
        "kinds": kinds,
    })
}

async fn config(State(pages): State<Pages>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let refuse = |message: &str| (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response();
    let Some(uuid) = query.get("proxy").and_then(|text| Uuid::try_parse(text).ok()) else {
        return refuse("say which proxy: ?proxy=<uuid>");
    };
    let Some(snapshot) = pages.mesh.snapshot() else {
        return refuse("nothing has been published yet");
    };
    let Some(view) = snapshot.proxy(uuid).and_then(|entry| snapshot.view(entry.class)) else {
        return (StatusCode::NOT_FOUND, "the mesh has no such proxy\n").into_response();
    };
    let kinds = ResourceType::ALL.map(|kind| {
        let resources = view.set(kind).iter().map(|(name, slot)| {
            let resource = snapshot.resource(*slot);
            json!({
                "name": name.as_ref(),
                "version": resource.map(|resource| resource.version().to_string()),
                "resource": resource.map(|resource| shown(resource)),
            })
        });
        (kind_name(kind).to_owned(), resources.collect::<Value>())
    });
    Json(Value::Object(kinds.into_iter().collect())).into_response()
}

/// A resource as JSON; of a secret nothing but that it is there.
fn shown(resource: &Resource) -> Value {
    fn decoded<M: Message + Name + Default>(resource: &Resource) -> Value {
        let message = prost_types::Any::decode(resource.any()).and_then(|any| M::decode(&any.value[..]));
        message.map_or(Value::Null, |message| to_json(&message))
    }
    match resource.kind() {
        ResourceType::Cluster => decoded::<Cluster>(resource),
        ResourceType::Endpoint => decoded::<ClusterLoadAssignment>(resource),
        ResourceType::Listener => decoded::<Listener>(resource),
        ResourceType::Route => decoded::<RouteConfiguration>(resource),
        ResourceType::Secret => json!("[redacted]"),
    }
}

async fn certificates(State(pages): State<Pages>) -> Json<Value> {
    let row = |held: crate::certificates::Held| {
        json!({
            "identity": held.identity.to_string(),
            "streams": held.streams,
            "notBefore": held.validity.map(|validity| validity.not_before.to_string()),
            "notAfter": held.validity.map(|validity| validity.not_after.to_string()),
        })
    };
    Json(pages.certificates.held().into_iter().map(row).collect())
}

async fn namespaces(State(pages): State<Pages>) -> Json<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    if let Some(snapshot) = pages.mesh.snapshot() {
        for (_, entry) in snapshot.proxies() {
            *counts.entry(entry.identity.namespace.to_string()).or_default() += 1;
        }
    }
    Json(counts)
}

async fn problems(State(pages): State<Pages>) -> Json<Value> {
    let row = |problem: &osm_core::facts::Diagnostic| json!({"object": problem.object.to_string(), "reason": problem.reason, "message": problem.message});
    Json(pages.mesh.problems().iter().map(row).collect())
}

async fn settings(State(pages): State<Pages>) -> Json<Value> {
    let control = pages.mesh.control().borrow().clone();
    Json(json!({
        "serviceCertificateValiditySeconds": control.service_certificate_validity.as_secs(),
        "logLevel": control.log_level.as_ref(),
        "debugServer": control.debug_server,
        "maxDataPlaneConnections": control.max_data_plane_connections,
    }))
}

async fn snapshot(State(pages): State<Pages>) -> Json<Value> {
    let snapshot = pages.mesh.snapshot();
    Json(json!({
        "revision": snapshot.as_ref().map(|snapshot| snapshot.revision),
        "proxies": snapshot.as_ref().map(|snapshot| snapshot.proxy_count()),
        "connected": pages.ads.registry().len(),
    }))
}

#[cfg(test)]
mod tests {
    use osm_core::{envoy::service_certificate, ir::ServiceCertificate};

    use super::*;

    #[test]
    fn a_secret_is_shown_without_what_is_in_it() {
        let certificate = ServiceCertificate {
            chain: "the chain".into(),
            key: "the key".into(),
        };
        let message = service_certificate(&certificate);
        let resource = Resource::new(ResourceType::Secret, "service-cert", &message);
        assert_eq!(shown(&resource), json!("[redacted]"));
    }
}
