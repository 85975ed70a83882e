//! Where sidecars listen: always at both listeners, at the addresses their pods have.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use osm_core::{
    facts::{Fact, MeshConfig, Namespace, Pod, pod::Proxy},
    identity::ServiceIdentity,
    mesh::{Engine, Event},
    resource::ResourceType,
};
use osm_proto::envoy::config::listener::v3::Listener;
use prost::Message;
use uuid::Uuid;

use crate::mesh;

fn pod(number: u128, addresses: &[&str]) -> Event {
    let namespace: Arc<str> = "shop".into();
    let proxy = Proxy {
        uuid: Uuid::from_u128(number),
        uid: "uid".into(),
        created: 0,
        identity: ServiceIdentity::new(namespace.clone(), "buyer"),
        labels: BTreeMap::new(),
        addresses: addresses
            .iter()
            .map(|address| address.parse::<IpAddr>().expect("an address"))
            .collect(),
        ports: BTreeMap::new(),
        hostname: None,
        subdomain: None,
        scraped: true,
        doubted: false,
    };
    Event::Upsert(Fact::Pod(Pod {
        namespace,
        name: number.to_string().into(),
        proxy: Some(Box::new(proxy)),
    }))
}

fn config(permissive: bool) -> Event {
    let mut config = MeshConfig::absent("osm-system".into());
    config.permissive = permissive;
    Event::Upsert(Fact::MeshConfig(Box::new(config)))
}

/// The listeners of a proxy, each with how many more addresses than one it has.
fn listeners(engine: &Engine, number: u128) -> Vec<String> {
    let snapshot = engine.snapshot();
    let class = snapshot.proxy(Uuid::from_u128(number)).expect("a proxy").class;
    let view = snapshot.view(class).expect("a view");
    let text = |slot| {
        let resource = snapshot.resource(slot).expect("is there");
        let any = prost_types::Any::decode(resource.any()).expect("an Any");
        let listener = Listener::decode(&any.value[..]).expect("decodes");
        format!("{}+{}", listener.name, listener.additional_addresses.len())
    };
    view.set(ResourceType::Listener)
        .iter()
        .map(|(_, slot)| text(*slot))
        .collect()
}

const IPV4: [&str; 3] = [
    "inbound-listener+0",
    "inbound-prometheus-listener+0",
    "outbound-listener+0",
];
const BOTH: [&str; 3] = [
    "inbound-listener+1",
    "inbound-prometheus-listener+1",
    "outbound-listener+1",
];

#[test]
fn pods_that_serve_nothing_and_may_reach_nothing_listen_where_they_are() {
    for permissive in [false, true] {
        let mut engine = Engine::new(mesh::options());
        let namespace = Event::Upsert(Fact::Namespace(Namespace {
            name: "shop".into(),
            monitored_by: Some("osm".into()),
            ignored: false,
        }));
        // The second pod has no address yet.
        engine.apply(vec![
            namespace,
            config(permissive),
            pod(1, &["10.1.0.1"]),
            pod(2, &[]),
        ]);
        assert_eq!(listeners(&engine, 1), IPV4);
        assert_eq!(listeners(&engine, 2), IPV4);

        let change = engine.apply(vec![pod(2, &["10.1.0.2", "fd00::2"])]);
        assert!(!change.classes.is_empty());
        assert_eq!(listeners(&engine, 1), IPV4);
        assert_eq!(listeners(&engine, 2), BOTH);

        engine.apply(vec![config(!permissive)]);
        assert_eq!(listeners(&engine, 1), IPV4);
        assert_eq!(listeners(&engine, 2), BOTH);

        engine.apply(vec![pod(2, &["10.1.0.2"])]);
        assert_eq!(listeners(&engine, 2), IPV4);
    }
}
