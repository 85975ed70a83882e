//! A model of Envoy against random worlds: it subscribes, forgets, rejects, reconnects and remembers as Envoy does.
//!
//! In the end it has what the server has; it is never sent what is not in the view of the moment, nor, without a
//! reason, what it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};
use proptest::prelude::*;

use super::*;
use crate::{
    resource::Version,
    xds::{DeltaStream, Limits},
};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// More bytes than any one resource has, and fewer than two.
const ONE_BYTES: usize = 200;

/// Content the model refuses.
fn is_bad(resource: &Resource) -> bool {
    (0..40)
        .filter(|value| value % 8 == 7)
        .any(|value| resource.version() == super::resource(resource.kind(), resource.name(), value).version())
}

#[derive(Default)]
struct Kind {
    wanted: BTreeSet<String>,
    has: BTreeMap<String, Version>,
    /// How often a name's unchanged resource may be sent: it was asked for, is warming, or was part of a rejection.
    excused: BTreeMap<String, u32>,
    opened: bool,
}

impl Kind {
    fn excuse(&mut self, name: &str) {
        *self.excused.entry(name.to_owned()).or_default() += 1;
    }

    fn is_excused(&mut self, name: &str) -> bool {
        self.excused.get_mut(name).is_some_and(|count| {
            let any = *count > 0;
            *count = count.saturating_sub(1);
            any
        })
    }
}

struct Envoy {
    kinds: [Kind; 5],
    /// Clusters that changed and wait for endpoints.
    warming: BTreeSet<String>,
    stream: DeltaStream,
    queue: VecDeque<Response>,
    /// The answer to clusters, which Envoy keeps to itself while a cluster is warming.
    withheld: Option<DeltaDiscoveryRequest>,
}

impl Envoy {
    fn new() -> Self {
        Self {
            kinds: Default::default(),
            warming: BTreeSet::new(),
            stream: DeltaStream::new(proxy(), Limits::default()),
            queue: VecDeque::new(),
            withheld: None,
        }
    }

    fn kind(&mut self, kind: ResourceType) -> &mut Kind {
        &mut self.kinds[kind as usize]
    }

    fn send(&mut self, world: &World, request: &DeltaDiscoveryRequest) {
        self.stream
            .on_request(&received(request), world.published())
            .expect("the request is in bounds");
        self.receive(world);
    }

    fn receive(&mut self, world: &World) {
        // What is held back for its size comes all the same when it may.
        let limits = [1, ONE_BYTES, usize::MAX];
        let due = limits.map(|limit| self.stream.due(world.published(), limit).responses);
        for response in due.into_iter().flatten() {
            let view = world.resources(response.kind);
            for resource in &response.resources {
                let current = view.get(resource.name().as_ref()).cloned().flatten();
                assert_eq!(current.as_ref(), Some(resource), "sent what is not in the view");
                assert!(
                    self.wants(response.kind, resource.name()),
                    "sent {} unasked",
                    resource.name()
                );
            }
            for name in &response.removed {
                assert!(!view.contains_key(name.as_ref()), "removed {name}, which exists");
            }
            self.queue.push_back(response);
        }
    }

    fn wants(&self, kind: ResourceType, name: &str) -> bool {
        kind.allows_wildcard() || self.kinds[kind as usize].wanted.contains(name)
    }

    /// The first request of a kind on a stream.
    fn open(&mut self, world: &World, kind: ResourceType) {
        let state = self.kind(kind);
        if state.opened || (!kind.allows_wildcard() && state.wanted.is_empty()) {
            return;
        }
        state.opened = true;
        state.excused = BTreeMap::new();
        let missing: Vec<_> = state
            .wanted
            .iter()
            .filter(|name| !state.has.contains_key(*name))
            .cloned()
            .collect();
        missing.iter().for_each(|name| state.excuse(name));
        let mut request = delta_request(kind, &[]);
        request.resource_names_subscribe = state.wanted.iter().cloned().collect();
        request.initial_resource_versions = state
            .has
            .iter()
            .map(|(name, version)| (name.clone(), version.to_string()))
            .collect();
        self.send(world, &request);
    }

    fn reconnect(&mut self, world: &World) {
        self.stream = DeltaStream::new(proxy(), Limits::default());
        self.queue.clear();
        self.withheld = None;
        for kind in ResourceType::ALL {
            self.kind(kind).opened = false;
        }
        // What was still warming subscribes anew: its endpoints are asked for.
        for name in std::mem::take(&mut self.warming) {
            self.kind(Endpoint).has.remove(&name);
            self.warming.insert(name);
        }
        for kind in ResourceType::ALL {
            self.open(world, kind);
        }
        self.stream.settle();
        self.receive(world);
    }

    fn subscribe(&mut self, world: &World, kind: ResourceType, name: &str, forget: bool) {
        let state = self.kind(kind);
        if forget {
            state.has.remove(name);
        }
        state.wanted.insert(name.to_owned());
        state.excuse(name);
        if state.opened {
            self.send(world, &delta_request(kind, &[name]));
        } else {
            self.open(world, kind);
        }
    }

    fn unsubscribe(&mut self, world: &World, kind: ResourceType, name: &str) {
        let state = self.kind(kind);
        if state.wanted.remove(name) {
            state.has.remove(name);
            let mut request = delta_request(kind, &[]);
            request.resource_names_unsubscribe = vec![name.to_owned()];
            self.send(world, &request);
        }
    }

    /// Takes one response in and answers it. Returns whether there was one.
    fn take(&mut self, world: &World) -> bool {
        let Some(response) = self.queue.pop_front() else {
            return false;
        };
        let kind = response.kind;
        let bad = response.resources.iter().any(|resource| is_bad(resource));
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for resource in &response.resources {
            let name = resource.name().to_string();
            if kind == Cluster {
                self.kind(Endpoint).excuse(&name);
            }
            if is_bad(resource) {
                if kind.allows_wildcard() { continue } else { break }
            }
            if !self.wants(kind, &name) {
                continue; // unsubscribed while it was on its way
            }
            let state = self.kind(kind);
            let had = state.has.insert(name.clone(), resource.version());
            if had == Some(resource.version()) {
                assert!(
                    state.is_excused(&name),
                    "{kind:?} {name} was sent again without a reason"
                );
            }
            if kind == Endpoint {
                self.warming.remove(&name);
            }
            if kind == Cluster && had != Some(resource.version()) {
                added.push(name);
            }
        }
        for name in &response.removed {
            let state = self.kind(kind);
            state.has.remove(name.as_ref());
            state.is_excused(name);
            removed.push(name.to_string());
        }
        if bad {
            for resource in &response.resources {
                self.kind(kind).excuse(resource.name());
            }
        }
        // A cluster wants its endpoints. One that is subscribed to already does not ask again.
        for name in added {
            self.warming.insert(name.clone());
            if !self.kind(Endpoint).wanted.contains(&name) {
                self.subscribe(world, Endpoint, &name, false);
            }
        }
        if kind == Cluster {
            for name in removed {
                self.warming.remove(&name);
                self.unsubscribe(world, Endpoint, &name);
            }
        }
        let mut request = delta_request(kind, &[]);
        request.response_nonce = response.nonce.to_string();
        request.error_detail = bad.then(|| {
            let mut message = "Error adding/updating: ".to_owned();
            for resource in response.resources.iter().filter(|resource| is_bad(resource)) {
                message.push_str(&format!("{}: malformed, ", resource.name()));
            }
            osm_proto::google::rpc::Status {
                code: 13,
                message,
                details: Vec::new(),
            }
        });
        if kind == Cluster {
            self.withheld = Some(request);
        } else {
            self.send(world, &request);
        }
        self.answer_clusters(world);
        true
    }

    /// Clusters are answered once none waits for endpoints any more, or only for such as do not come, which Envoy gives
    /// up on after a while.
    fn answer_clusters(&mut self, world: &World) {
        let endpoints = world.resources(Endpoint);
        let comes = |name: &String| {
            let entry = endpoints.get(name).and_then(Option::as_ref);
            entry.is_some_and(|entry| !is_bad(entry))
        };
        if !self.warming.iter().any(comes)
            && let Some(request) = self.withheld.take()
        {
            self.send(world, &request);
        }
    }

    fn check(&self, world: &World) {
        for kind in ResourceType::ALL {
            let state = &self.kinds[kind as usize];
            let view = world.resources(kind);
            for (name, resource) in &view {
                let has = state.has.get(name);
                match resource {
                    Some(resource) if self.wants(kind, name) && state.opened && !is_bad(resource) => {
                        assert_eq!(has, Some(&resource.version()), "{kind:?} {name}");
                    }
                    Some(resource) if is_bad(resource) => assert_ne!(has, Some(&resource.version())),
                    _ => {}
                }
            }
            let clean = ResourceType::ALL.iter().all(|kind| {
                world
                    .resources(*kind)
                    .values()
                    .flatten()
                    .all(|resource| !is_bad(resource))
            });
            for name in state.has.keys() {
                assert!(
                    view.contains_key(name) || !clean,
                    "{kind:?} {name} was not removed"
                );
            }
        }
        let endpoints = world.resources(Endpoint);
        for name in &self.warming {
            let ready = endpoints
                .get(name)
                .and_then(|entry| entry.as_ref())
                .is_some_and(|entry| !is_bad(entry));
            assert!(!ready, "cluster {name} waits for endpoints that exist");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(ResourceType, &'static str, u32),
    Remove(ResourceType, &'static str),
    Pend(&'static str),
    Publish,
    Take,
    Subscribe(ResourceType, &'static str, bool),
    Unsubscribe(ResourceType, &'static str),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(ResourceType::ALL.to_vec());
    let named = prop::sample::select(vec![Route, Secret]);
    let name = prop::sample::select(NAMES.to_vec());
    prop_oneof![
        8 => (kind.clone(), name.clone(), 0..40_u32).prop_map(|(kind, name, value)| Step::Set(kind, name, value)),
        3 => (kind, name.clone()).prop_map(|(kind, name)| Step::Remove(kind, name)),
        1 => name.clone().prop_map(Step::Pend),
        6 => Just(Step::Publish),
        8 => Just(Step::Take),
        3 => (named.clone(), name.clone(), any::<bool>()).prop_map(|(kind, name, forget)| {
            Step::Subscribe(kind, name, forget)
        }),
        1 => (named, name).prop_map(|(kind, name)| Step::Unsubscribe(kind, name)),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #[test]
    fn a_proxy_ends_with_what_the_server_has(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        world.publish();
        let mut envoy = Envoy::new();
        envoy.open(&world, Cluster);
        envoy.open(&world, Listener);
        for step in steps {
            match step {
                Step::Set(kind, name, value) => { world.set(kind, name, value); }
                Step::Remove(kind, name) => { world.remove(kind, name); }
                Step::Pend(name) => { world.pend(Secret, name); }
                Step::Publish => {
                    world.publish();
                    envoy.receive(&world);
                }
                Step::Take => { envoy.take(&world); }
                Step::Subscribe(kind, name, forget) => envoy.subscribe(&world, kind, name, forget),
                Step::Unsubscribe(kind, name) => envoy.unsubscribe(&world, kind, name),
                Step::Reconnect => envoy.reconnect(&world),
            }
        }
        world.publish();
        envoy.receive(&world);
        let mut rounds = 0;
        while envoy.take(&world) {
            rounds += 1;
            prop_assert!(rounds < 10_000, "it never comes to rest");
        }
        prop_assert!(envoy.withheld.is_none(), "clusters wait for endpoints that are not sent");
        envoy.check(&world);
        world.publish();
        envoy.receive(&world);
        prop_assert!(envoy.queue.is_empty(), "an equal snapshot was sent again");
        // Moving to a second replica sends nothing but what was rejected before, and secrets if they differ.
        let rejected = ResourceType::ALL.iter().any(|kind| {
            world.resources(*kind).values().flatten().any(|resource| is_bad(resource))
        });
        envoy.reconnect(&world);
        if !rejected {
            let sent: Vec<_> = envoy.queue.iter().flat_map(|response| &response.resources).collect();
            prop_assert!(sent.is_empty(), "a reconnect sent {sent:?}");
        }
    }
}
