//! Who serves when Kubernetes says that nobody is ready.

use osm_core::{
    facts::{Fact, MeshConfig, Namespace, endpoint_slice, pod, service},
    mesh::{Engine, Event},
    resource::ResourceType,
};
use osm_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use prost::Message;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::mesh;

/// How a pod stands, in the words of its conditions.
#[derive(Clone, Copy, PartialEq)]
enum Pod {
    Ready,
    /// Its kubelet says that a container is not ready.
    Unready,
    /// Nothing was heard from its kubelet, which last said that all is well.
    Doubted,
    /// It is being deleted.
    Ending,
}

impl Pod {
    fn object(self, number: usize) -> Event {
        let condition = |kind: &str, is: bool| {
            let status = if is { "True" } else { "False" };
            json!({"type": kind, "status": status})
        };
        let mut object = json!({
            "metadata": {"namespace": "shop", "name": format!("web-{number}"), "labels": {
                "app": "web", "osm-proxy-uuid": Uuid::from_u128(number as u128).to_string()
            }},
            "spec": {"serviceAccountName": "web", "containers": []},
            "status": {"podIP": format!("10.1.0.{number}"), "conditions": [
                condition("Ready", self == Self::Ready),
                condition("ContainersReady", self != Self::Unready),
            ]},
        });
        if self == Self::Ending {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        read(object, |object| pod::from(&object))
    }

    fn endpoint(self, number: usize) -> Value {
        json!({
            "addresses": [format!("10.1.0.{number}")],
            "targetRef": {"kind": "Pod", "name": format!("web-{number}")},
            "conditions": {
                "ready": self == Self::Ready,
                "serving": self == Self::Ready,
                "terminating": self == Self::Ending,
            },
        })
    }
}

fn read<T: serde::de::DeserializeOwned, E: std::fmt::Debug>(
    object: Value,
    from: impl Fn(T) -> Result<Fact, E>,
) -> Event {
    let object = serde_json::from_value(object).expect("an object");
    Event::Upsert(from(object).expect("a fact"))
}

/// The last bytes of the addresses that the service's clients are sent.
fn serving(engine: &Engine) -> Vec<u8> {
    let snapshot = engine.snapshot();
    let class = snapshot.proxy(Uuid::from_u128(1)).expect("a proxy").class;
    let view = snapshot.view(class).expect("a view");
    let (_, slot) = view.set(ResourceType::Endpoint).iter().next().expect("a cluster");
    let any = prost_types::Any::decode(snapshot.resource(*slot).expect("is there").any()).expect("an Any");
    let assignment = ClusterLoadAssignment::decode(&any.value[..]).expect("decodes");
    let endpoints = assignment
        .endpoints
        .into_iter()
        .flat_map(|locality| locality.lb_endpoints);
    let address = |host: Option<HostIdentifier>| match host {
        Some(HostIdentifier::Endpoint(endpoint)) => format!("{:?}", endpoint.address),
        other => panic!("{other:?}"),
    };
    let texts: Vec<_> = endpoints
        .map(|endpoint| address(endpoint.host_identifier))
        .collect();
    (1..=3)
        .filter(|number| {
            texts
                .iter()
                .any(|text| text.contains(&format!("10.1.0.{number}\"")))
        })
        .collect()
}

fn with(pods: [Pod; 3]) -> Vec<u8> {
    let mut config = MeshConfig::absent("osm-system".into());
    config.permissive = true;
    let mut events = vec![
        Event::Upsert(Fact::Namespace(Namespace {
            name: "shop".into(),
            monitored_by: Some("osm".into()),
            ignored: false,
        })),
        Event::Upsert(Fact::MeshConfig(Box::new(config))),
        read(
            json!({
                "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "selector": {"app": "web"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
            }),
            |object| service::from(&object),
        ),
    ];
    let numbered = || (1..).zip(pods);
    events.extend(numbered().map(|(number, pod)| pod.object(number)));
    let endpoints: Vec<_> = numbered().map(|(number, pod)| pod.endpoint(number)).collect();
    events.push(read(
        json!({
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints,
        }),
        |object| endpoint_slice::from(&object),
    ));
    let mut engine = Engine::new(mesh::options());
    engine.apply(events);
    serving(&engine)
}

#[test]
fn doubts_about_nodes_leave_a_service_what_it_has() {
    use Pod::{Doubted, Ending, Ready, Unready};
    assert_eq!(with([Ready, Ready, Ready]), [1, 2, 3]);
    assert_eq!(with([Unready, Ready, Ending]), [2]);
    assert_eq!(
        with([Doubted, Ready, Doubted]),
        [2],
        "one that is ready is enough"
    );
    assert_eq!(
        with([Doubted, Doubted, Unready]),
        [1, 2],
        "an application's own word holds"
    );
    assert_eq!(with([Doubted, Ending, Unready]), [1]);
    assert!(
        with([Unready, Unready, Ending]).is_empty(),
        "nobody is sent to those that are not ready"
    );
}
