//! Meshes to judge in tests.

use std::collections::BTreeMap;
use std::time::Duration;

use osm_core::status::{Connection, Held, Kind, Life, Proxies, Replica, RootInUse, Serves};
use serde_json::json;

use super::facts::{
    Answer, Autoscaler, Budget, Component, Facts, Instance, Labelled, Node, Rollout, Webhook,
};

/// The replicas' clocks.
pub(crate) const NOW: i64 = 1_800_000_000;

fn replica(component: &str, number: usize) -> Replica {
    let controller = component == "osm-controller";
    let held = |left| Held {
        count: 10,
        first_not_after: Some(NOW + left),
        lifetime_seconds: 86_400,
    };
    let life = Life {
        not_after: NOW + 60_000,
        lifetime_seconds: 86_400,
    };
    Replica {
        component: component.to_owned(),
        pod: format!("{component}-{number}"),
        version: "v2.0.0".to_owned(),
        clock_millis: NOW * 1_000,
        up_seconds: 1_000,
        leader: number == 0,
        roots: vec![RootInUse {
            fingerprint: "ab".repeat(32),
            not_after: NOW + 86_400 * 3_650,
        }],
        certificates: [("certificate".to_owned(), life)].into(),
        watches: [("namespaces".to_owned(), Some(20))].into(),
        serves: controller.then(|| Serves {
            connected: 10,
            known: 30,
            revision: 5,
            certificates: held(60_000),
        }),
        bootstraps: (!controller && number == 0).then(|| held(60_000)),
        uninjected: (controller && number == 0).then_some(0),
        ..Replica::default()
    }
}

fn component(name: &'static str, key: &'static str) -> Component {
    let instance = |number: usize| Instance {
        pod: format!("{name}-{number}"),
        node: Some(["a", "b", "c"][number].to_owned()),
        ready: true,
        answer: Ok(Answer {
            replica: replica(name, number),
            asked_millis: NOW * 1_000 - 50,
            answered_millis: NOW * 1_000 + 50,
        }),
    };
    Component {
        name,
        key,
        rollout: Ok(Rollout {
            desired: 3,
            updated: 3,
            available: 3,
            requests_cpu: true,
        }),
        replicas: Ok((0..3).map(instance).collect()),
        budget: Ok(Some(Budget {
            name: format!("{name}-pdb"),
            expected: 3,
            healthy: 3,
            needed: 1,
            allowed: 2,
        })),
        autoscaler: Ok(Some(Autoscaler {
            name: format!("{name}-hpa"),
            min: 3,
            max: 10,
            current: 3,
            cpu: Some(80),
            idle: None,
        })),
    }
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> Labelled {
    let own = ("kubernetes.io/metadata.name", name);
    let labels = labels.iter().copied().chain([own]);
    Labelled {
        name: name.to_owned(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    }
}

fn proxies(replica: usize) -> Proxies {
    let proxy = |number: usize| Connection {
        uuid: format!("uuid-{replica}-{number}"),
        namespace: "shop".to_owned(),
        service_account: "till".to_owned(),
        kinds: Some(
            ["CDS", "EDS", "LDS", "RDS", "SDS"]
                .map(|kind| (kind.to_owned(), Kind::default()))
                .into(),
        ),
        certificate_not_after: Some(NOW + 60_000),
        ..Connection::default()
    };
    Proxies {
        pod: format!("osm-controller-{replica}"),
        now: NOW,
        proxies: (0..10).map(proxy).collect(),
    }
}

/// A mesh as it should be.
pub(crate) fn healthy() -> Facts {
    let member = ("openservicemesh.io/monitored-by", "osm");
    let node = |name: &str, zone: &str| Node {
        name: name.to_owned(),
        zone: Some(zone.to_owned()),
        takes_pods: true,
        ready: true,
        renewed_millis: Some((NOW - 5) * 1_000),
    };
    let selector = json!({
        "matchLabels": {"openservicemesh.io/monitored-by": "osm"},
        "matchExpressions": [
            {"key": "openservicemesh.io/ignore", "operator": "DoesNotExist"},
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "osm-system"]},
        ],
    });
    Facts {
        mesh: "osm".to_owned(),
        namespace: "osm-system".to_owned(),
        version: "v2.0.0".to_owned(),
        now_millis: NOW * 1_000,
        minor: Some(36),
        components: vec![
            component("osm-controller", "osmController"),
            component("osm-injector", "injector"),
        ],
        nodes: Ok(vec![node("a", "north"), node("b", "south"), node("c", "south")]),
        namespaces: Ok(vec![
            namespace("kube-system", &[]),
            namespace("osm-system", &[]),
            namespace("other", &[]),
            namespace("shop", &[member]),
            namespace("legacy", &[member, ("openservicemesh.io/ignore", "true")]),
        ]),
        webhooks: Ok(vec![Webhook {
            name: "osm-inject.k8s.io".to_owned(),
            configuration: "MutatingWebhookConfiguration osm-webhook-osm".to_owned(),
            roots: Ok(vec!["ab".repeat(32)]),
            namespaces: serde_json::from_value(selector).unwrap(),
            fails: true,
            pods: true,
        }]),
        lifetime: Ok(Some(Duration::from_secs(86_400))),
        uninjected: Vec::new(),
        proxies: (0..3)
            .map(|replica| (format!("osm-controller-{replica}"), Ok(proxies(replica))))
            .collect(),
    }
}

/// A mesh in which much is wrong at once.
pub(crate) fn broken() -> Facts {
    let mut facts = healthy();
    facts.minor = Some(20);
    facts.lifetime = Ok(None);
    facts.webhooks = Ok(Vec::new());
    for component in &mut facts.components {
        if let Ok(rollout) = &mut component.rollout {
            (rollout.available, rollout.requests_cpu) = (0, false);
        }
        if let Ok(replicas) = &mut component.replicas {
            replicas.truncate(1);
            if let Ok(answer) = &mut replicas[0].answer {
                answer.replica = Replica {
                    not_ready: [("root".to_owned(), "none".to_owned())].into(),
                    certificates: BTreeMap::new(),
                    uninjected: Some(3),
                    ..Replica::default()
                };
            }
        }
        if let Ok(Some(budget)) = &mut component.budget {
            (budget.expected, budget.allowed) = (1, 0);
        }
    }
    facts
}

/// A mesh of which nothing can be found out.
pub(crate) fn unknown() -> Facts {
    let mut facts = healthy();
    let why = || "forbidden".to_owned();
    facts.minor = None;
    facts.nodes = Err(why());
    facts.namespaces = Err(why());
    facts.webhooks = Err(why());
    facts.lifetime = Err(why());
    for component in &mut facts.components {
        component.rollout = Err(why());
        component.replicas = Err(why());
        component.budget = Err(why());
        component.autoscaler = Err(why());
    }
    facts
        .proxies
        .iter_mut()
        .for_each(|(_, proxies)| *proxies = Err(why()));
    facts
}
