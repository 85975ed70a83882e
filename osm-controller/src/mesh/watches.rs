//! The watches that feed the engine.
//!
//! Each object becomes a fact as it arrives, in the watch's task; what the mesh does not need is never held.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::core::PartialObjectMeta;
use osm_core::{
    api::{HTTPRouteGroup, MeshConfig, TCPRoute, TrafficSplit, TrafficTarget, labels},
    facts::{self, Diagnostic, Fact, FactKey, FactKind, endpoint_slice, pod, service},
    mesh,
};
use osm_runtime::{
    health::Health,
    shutdown::Shutdown,
    watch::{Event, Malformed, ObjectKey, Watch, WatchMetrics, WatchThread},
};

use super::thread::{Input, Inputs};

type Read = Result<Fact, Diagnostic>;

/// Starts all watches, until `shutdown.stop`. The process is not ready until each has listed once.
pub fn watch_all(
    thread: &WatchThread,
    (osm_namespace, config_name): (&str, &str),
    inputs: &Inputs,
    health: &Health,
    metrics: &WatchMetrics,
    shutdown: &Shutdown,
) {
    // A macro, because each watch is of a type of its own.
    macro_rules! feed {
        ($kind:ident, $watch:expr, $read:expr) => {{
            let wrap = |event| Input::Event(to_engine(FactKind::$kind, event));
            let condition = health.condition(FactKind::$kind.name());
            let (inputs, metrics, stop) = (inputs.clone(), metrics.clone(), shutdown.stop.clone());
            thread
                .handle
                .spawn($watch.run($read, wrap, inputs, condition, metrics, stop));
        }};
    }
    let of = || thread.client.clone();
    let config = format!("metadata.name={config_name}");
    feed!(Namespace, Watch::<Namespace>::all(of(), "namespaces"), |object| {
        facts::namespace::from(&object)
    });
    feed!(
        Service,
        Watch::<service::Object, _>::wire(of(), "services"),
        |object| service::from(&object)
    );
    feed!(
        EndpointSlice,
        Watch::<endpoint_slice::Object, _>::wire(of(), "endpointslices"),
        |object| endpoint_slice::from(&object)
    );
    // The API server picks out the pods that have a sidecar.
    feed!(
        Pod,
        Watch::<pod::Object, _>::wire(of(), "pods").labels(labels::PROXY_UUID),
        |object| pod::from(&object)
    );
    feed!(
        ServiceAccount,
        Watch::<PartialObjectMeta<ServiceAccount>, _>::metadata(of(), "serviceaccounts"),
        |object| facts::service_account::from_metadata(&object.metadata)
    );
    feed!(
        MeshConfig,
        Watch::<MeshConfig>::namespaced(of(), "meshconfigs", osm_namespace).fields(&config),
        |object| facts::mesh_config::from(&object)
    );
    feed!(
        TrafficTarget,
        Watch::<TrafficTarget>::all(of(), "traffictargets").optional(),
        |object| { facts::traffic_target::from(&object) }
    );
    feed!(
        HTTPRouteGroup,
        Watch::<HTTPRouteGroup>::all(of(), "httproutegroups").optional(),
        |object| { facts::http_route_group::from(&object) }
    );
    feed!(
        TCPRoute,
        Watch::<TCPRoute>::all(of(), "tcproutes").optional(),
        |object| { facts::tcp_route::from(&object) }
    );
    feed!(
        TrafficSplit,
        Watch::<TrafficSplit>::all(of(), "trafficsplits").optional(),
        |object| { facts::traffic_split::from(&object) }
    );
}

fn key(kind: FactKind, key: &ObjectKey) -> FactKey {
    FactKey::new(kind, key.namespace.as_str(), key.name.as_str())
}

fn undecodable(kind: FactKind, malformed: &Malformed) -> Diagnostic {
    let message = format!(
        "it cannot be read and is ignored until it is corrected: {}",
        malformed.error
    );
    Diagnostic::new(key(kind, &malformed.key), "Malformed", message)
}

fn to_engine(kind: FactKind, event: Event<Read>) -> mesh::Event {
    match event {
        Event::Upsert(Ok(fact)) => mesh::Event::Upsert(fact),
        Event::Upsert(Err(problem)) => mesh::Event::Malformed(problem),
        Event::Malformed(malformed) => mesh::Event::Malformed(undecodable(kind, &malformed)),
        Event::Remove(object) => mesh::Event::Remove(key(kind, &object)),
        Event::Reset { objects, malformed } => {
            let mut problems: Vec<_> = malformed
                .iter()
                .map(|malformed| undecodable(kind, malformed))
                .collect();
            let mut facts = Vec::with_capacity(objects.len());
            for object in objects {
                match object {
                    Ok(fact) => facts.push(fact),
                    Err(problem) => problems.push(problem),
                }
            }
            mesh::Event::Reset {
                kind,
                facts,
                malformed: problems,
            }
        }
    }
}
