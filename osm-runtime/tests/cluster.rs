//! What only a real API server can show. Runs when asked for by name: `make e2e-test` names a kubeconfig in
//! `OSM_E2E_KUBECONFIG`. Each test works in a namespace of its own and removes it.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Secret},
    events::v1::Event as KubeEvent,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use osm_runtime::{
    CancellationToken,
    client::{connect, describe},
    event::{Events, News, Severity},
    health::Health,
    issuer::{Authority, Issuer, KeyKind, Provider, RootState, tresor},
    lease::{Election, campaign},
    metrics::Metrics,
    watch::{Event, Watch, WatchMetrics},
    webhook::bundle,
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

struct Place {
    client: Client,
    name: String,
}

impl Place {
    async fn new(purpose: &str) -> Option<Self> {
        let Some(path) = std::env::var_os("OSM_E2E_KUBECONFIG") else {
            panic!("OSM_E2E_KUBECONFIG is not set: run `make e2e-test`");
        };
        // A cluster that was asked for and is not there is a failure: nothing here passes by being skipped then.
        let client = connect("osm-runtime-tests", Some(PathBuf::from(path)))
            .await
            .expect("OSM_E2E_KUBECONFIG names a usable kubeconfig");
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"generateName": format!("osm-runtime-{purpose}-")}}))
                .unwrap();
        let api = Api::<Namespace>::all(client.clone());
        let name = api
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap()
            .metadata
            .name
            .unwrap();
        Some(Self { client, name })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    async fn remove(self) {
        let api = Api::<Namespace>::all(self.client);
        api.delete(&self.name, &DeleteParams::default()).await.unwrap();
    }
}

fn tresor(place: &Place) -> Provider {
    Provider::Tresor {
        namespace: place.name.clone(),
        secret: "osm-ca-bundle".into(),
        labels: BTreeMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_starters_end_with_one_root() {
    let Some(place) = Place::new("root").await else {
        return;
    };
    let starters: Vec<_> = (0..50)
        .map(|starter| {
            let (client, provider) = (place.client.clone(), tresor(&place));
            tokio::spawn(async move {
                let open = || Issuer::open(client.clone(), &provider, |_| {});
                // A few are killed on the way, and others come in their place.
                if starter % 5 == 0 {
                    let limit = Duration::from_millis(starter * 4);
                    let _ = timeout(limit, open()).await;
                }
                open().await.unwrap()
            })
        })
        .collect();
    let mut issuers = Vec::new();
    for starter in starters {
        issuers.push(starter.await.unwrap());
    }
    let first = issuers[0].roots();
    assert!(issuers.iter().all(|issuer| issuer.roots() == first));
    assert_eq!(issuers[0].check().await, RootState::Same);

    // Replaced or removed behind our back: noticed, not taken over.
    let secrets = place.api::<Secret>();
    let other = Authority::generate(KeyKind::Rsa2048, Timestamp::now()).unwrap();
    let patch = json!({"stringData": {tresor::CERTIFICATE_KEY: other.certificate, tresor::PRIVATE_KEY_KEY: *other.key}});
    secrets
        .patch("osm-ca-bundle", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    assert!(matches!(issuers[0].check().await, RootState::Differs(_)));
    assert_eq!(issuers[0].roots(), first);
    let provider = tresor(&place);
    // An RSA root, as the original made them, is taken by who comes next.
    let reopen = || Issuer::open(place.client.clone(), &provider, |_| {});
    let next = reopen().await.unwrap();
    assert_eq!(next.roots().roots()[0].pem(), other.certificate);
    let patch = json!({"stringData": {tresor::PRIVATE_KEY_KEY: "half-written"}});
    secrets
        .patch("osm-ca-bundle", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    assert!(reopen().await.is_err());
    let kept = secrets.get("osm-ca-bundle").await.unwrap().data.unwrap();
    assert_eq!(kept[tresor::PRIVATE_KEY_KEY].0, b"half-written", "never replaced");
    place.remove().await;
}

#[tokio::test]
async fn objects_are_listed_and_then_followed() {
    let Some(place) = Place::new("watch").await else {
        return;
    };
    let maps = place.api::<ConfigMap>();
    let map =
        |name: &str| -> ConfigMap { serde_json::from_value(json!({"metadata": {"name": name}})).unwrap() };
    for number in 0..20 {
        maps.create(&PostParams::default(), &map(&format!("m{number:02}")))
            .await
            .unwrap();
    }
    let (sink, mut events) = mpsc::channel(1);
    let health = Health::new();
    let stop = CancellationToken::new();
    let watch = Watch::<ConfigMap>::namespaced(place.client.clone(), "configmaps", &place.name)
        .fields("metadata.name!=kube-root-ca.crt");
    let name = |map: ConfigMap| map.metadata.name.unwrap();
    let condition = health.condition("configmaps");
    let metrics = WatchMetrics::default();
    tokio::spawn(watch.run(name, |event| event, sink, condition, metrics, stop.clone()));
    let mut next = async || {
        timeout(Duration::from_secs(30), events.recv())
            .await
            .unwrap()
            .unwrap()
    };
    let Event::Reset {
        mut objects,
        malformed,
    } = next().await
    else {
        panic!("no list")
    };
    objects.sort();
    assert_eq!(
        (objects.len(), objects[19].as_str(), malformed.len()),
        (20, "m19", 0)
    );
    maps.create(&PostParams::default(), &map("new")).await.unwrap();
    assert_eq!(next().await, Event::Upsert("new".to_owned()));
    assert!(health.is_ready());
    maps.delete("new", &DeleteParams::default()).await.unwrap();
    assert!(matches!(next().await, Event::Remove(key) if key.name == "new" && key.namespace == place.name));
    stop.cancel();

    // A kind that the cluster does not know.
    let (sink, mut events) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let watch =
        Watch::<kube::core::PartialObjectMeta<Namespace>, _>::metadata(place.client.clone(), "namespaces");
    let condition = health.condition("namespaces");
    let wanted = place.name.clone();
    let run = watch.run(
        |namespace| namespace.metadata.name.unwrap(),
        |event| event,
        sink,
        condition,
        WatchMetrics::default(),
        stop.clone(),
    );
    tokio::spawn(run);
    let Some(Event::Reset { objects, .. }) = timeout(Duration::from_secs(30), events.recv()).await.unwrap()
    else {
        panic!("no list")
    };
    assert!(objects.contains(&wanted));
    stop.cancel();
    place.remove().await;
}

#[tokio::test]
async fn one_of_three_leads_and_hands_over() {
    let Some(place) = Place::new("lease").await else {
        return;
    };
    let start = |holder: usize| {
        let (leader, leads) = watch::channel(false);
        let stop = CancellationToken::new();
        let election = Election {
            duration: Duration::from_secs(4),
            period: Duration::from_millis(200),
            ..Election::new("osm-test", format!("pod-{holder}"))
        };
        let (client, namespace, token) = (place.client.clone(), place.name.clone(), stop.clone());
        let task = tokio::spawn(async move { campaign(client, &namespace, election, leader, token).await });
        (leads, stop, task)
    };
    let mut candidates: Vec<_> = (0..3).map(start).collect();
    sleep(Duration::from_secs(2)).await;
    let leaders = |candidates: &[(watch::Receiver<bool>, CancellationToken, _)]| {
        candidates.iter().filter(|(leads, ..)| *leads.borrow()).count()
    };
    assert_eq!(leaders(&candidates), 1);
    let leader = candidates.iter().position(|(leads, ..)| *leads.borrow()).unwrap();
    let (_, stop, task) = candidates.remove(leader);
    stop.cancel();
    task.await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(leaders(&candidates), 1);
    let lease = place.api::<Lease>().get("osm-test").await.unwrap();
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(2));
    for (_, stop, task) in candidates {
        stop.cancel();
        task.await.unwrap();
    }
    place.remove().await;
}

#[tokio::test]
async fn the_ca_bundle_is_filled_in_and_kept() {
    let Some(place) = Place::new("bundle").await else {
        return;
    };
    let name = place.name.clone();
    // Selects nothing: no rule at all.
    let configuration: ValidatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": {"name": name},
        "webhooks": [{
            "name": "a.osm.test", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "osm-validator", "namespace": name, "path": "/validate", "port": 9093}},
        }],
    }))
    .unwrap();
    let api = Api::<ValidatingWebhookConfiguration>::all(place.client.clone());
    let now = Timestamp::now();
    let root = Authority::load(&Authority::generate(KeyKind::P256, now).unwrap(), now).unwrap();
    let roots = Issuer::from_authority(root).watch_roots();
    let stop = CancellationToken::new();
    // Two replicas, started before there is anything to fill in.
    let keepers: Vec<_> = (0..2)
        .map(|_| {
            let (client, name, roots, stop) =
                (place.client.clone(), name.clone(), roots.clone(), stop.clone());
            tokio::spawn(async move {
                let metrics = WatchMetrics::default();
                bundle::keep::<ValidatingWebhookConfiguration>(
                    client, &name, "osm-test", roots, metrics, stop,
                )
                .await;
            })
        })
        .collect();
    sleep(Duration::from_millis(500)).await;
    api.create(&PostParams::default(), &configuration).await.unwrap();
    let wanted = roots.borrow().pem().as_bytes().to_vec();
    let filled = async || {
        for _ in 0..200 {
            let found = api.get(&name).await.unwrap();
            let webhook = &found.webhooks.as_ref().unwrap()[0];
            if webhook
                .client_config
                .ca_bundle
                .as_ref()
                .is_some_and(|bundle| bundle.0 == wanted)
            {
                assert_eq!(
                    webhook.client_config.service.as_ref().unwrap().name,
                    "osm-validator"
                );
                return found.metadata.resource_version.unwrap();
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("not filled in");
    };
    filled().await;
    let spoil = json!({"webhooks": [{"name": "a.osm.test", "clientConfig": {"caBundle": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BPT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="}}]});
    if let Err(error) = api
        .patch(&name, &PatchParams::default(), &Patch::Strategic(&spoil))
        .await
    {
        // Newer API servers refuse a bundle that holds no certificate; an empty one they take.
        eprintln!("{}", describe(&error));
        let empty = json!({"webhooks": [{"name": "a.osm.test", "clientConfig": {"caBundle": null}}]});
        api.patch(&name, &PatchParams::default(), &Patch::Strategic(&empty))
            .await
            .unwrap();
    }
    let settled = filled().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(filled().await, settled, "nobody fights");
    stop.cancel();
    for keeper in keepers {
        keeper.await.unwrap();
    }
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    place.remove().await;
}

#[tokio::test]
async fn the_same_news_are_one_event() {
    let Some(place) = Place::new("event").await else {
        return;
    };
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "subject"}})).unwrap();
    let map = place
        .api::<ConfigMap>()
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let events = Events::start(
        place.client.clone(),
        "osm-test",
        "pod-0",
        &Metrics::new(),
        stop.clone(),
    );
    for number in 0..6 {
        let note = format!(
            "something is wrong {}; do this: {}",
            number % 2,
            "x".repeat(2_000)
        );
        events.report(News {
            object: map.object_ref(&()),
            severity: Severity::Warning,
            reason: "Wrong",
            note,
        });
    }
    sleep(Duration::from_secs(2)).await;
    let found = place
        .api::<KubeEvent>()
        .list(&Default::default())
        .await
        .unwrap()
        .items;
    let found: Vec<_> = found
        .iter()
        .filter(|event| event.reason.as_deref() == Some("Wrong"))
        .collect();
    assert_eq!(found.len(), 2);
    assert_eq!(
        found[0].regarding.as_ref().unwrap().name.as_deref(),
        Some("subject")
    );
    stop.cancel();
    place.remove().await;
}
