//! A proxy, the relay beside it, and a controller, all in memory.

mod model;
mod rules;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use osm_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message;

use super::*;
use crate::{
    resource::ResourceType,
    xds::{
        DeltaStream, Limits as StreamLimits,
        tests::{World, delta_request, proxy, received, rejection},
    },
};

/// The journal, and the store over it.
pub(super) struct Disk {
    pub(super) journal: Vec<u8>,
    pub(super) store: Store,
    /// Where the last write began.
    last: usize,
}

impl Disk {
    pub(super) fn new() -> Self {
        let (store, header) = Store::new(Limits::default());
        Self {
            journal: header.to_vec(),
            store,
            last: header.len(),
        }
    }

    pub(super) fn write(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        self.last = self.journal.len();
        let bytes = self.store.record(changes).expect("it fits");
        self.journal.extend(bytes);
        assert_eq!(self.journal.len() as u64, self.store.end());
    }

    pub(super) fn compact(&mut self) -> bool {
        let Some(compaction) = self.store.compaction() else {
            return false;
        };
        let mut journal = compaction.head;
        for place in &compaction.copies {
            journal.extend(self.at(*place));
        }
        self.journal = journal;
        self.store = compaction.store;
        self.last = self.journal.len();
        assert_eq!(self.journal.len() as u64, self.store.end());
        true
    }

    /// The writer is killed, with so many bytes of its last write missing, and starts again.
    pub(super) fn crash(&mut self, missing: usize) {
        let end = self.journal.len().saturating_sub(missing).max(self.last);
        self.journal.truncate(end);
        self.store = Store::read(Limits::default(), &self.journal).expect("a journal");
        self.journal.truncate(self.store.end() as usize);
        self.last = self.journal.len();
    }

    fn at(&self, place: Place) -> Bytes {
        let from = place.offset as usize;
        Bytes::copy_from_slice(&self.journal[from..from + place.length as usize])
    }

    /// Everything that is kept: kind and name, version.
    pub(super) fn kept(&self) -> BTreeMap<(ResourceType, String), Version> {
        let all = ResourceType::ALL.into_iter();
        all.flat_map(|kind| self.store.names(kind).map(move |name| (kind, name)))
            .map(|(kind, name)| {
                let version = self.store.version(kind, name).expect("it is kept");
                ((kind, name.to_string()), version)
            })
            .collect()
    }
}

/// Who answers the proxy.
enum Peer {
    Controller(Box<(DeltaStream, Live)>),
    Nobody(Standby),
}

/// A proxy that asks for names it was told by nobody, accepts or rejects responses whole, and reports what it has.
pub(super) struct Proxy {
    pub(super) has: BTreeMap<(ResourceType, String), String>,
    wanted: BTreeSet<(ResourceType, String)>,
    opened: BTreeSet<ResourceType>,
    queue: VecDeque<DeltaDiscoveryResponse>,
    peer: Peer,
}

impl Proxy {
    pub(super) fn new() -> Self {
        Self {
            has: BTreeMap::new(),
            wanted: BTreeSet::new(),
            opened: BTreeSet::new(),
            queue: VecDeque::new(),
            peer: Peer::Nobody(Standby::new()),
        }
    }

    /// A new stream to a controller, with all that the proxy had opened.
    pub(super) fn connect(&mut self, world: &World, disk: &mut Disk) {
        let stream = DeltaStream::new(proxy(), StreamLimits::default());
        self.peer = Peer::Controller(Box::new((stream, Live::new())));
        self.reopen(world, disk);
    }

    /// A new stream that no controller answers.
    pub(super) fn stand_by(&mut self, world: &World, disk: &mut Disk) {
        self.peer = Peer::Nobody(Standby::new());
        self.reopen(world, disk);
    }

    /// The proxy starts anew: it has nothing.
    pub(super) fn restart(&mut self) {
        self.has.clear();
    }

    fn reopen(&mut self, world: &World, disk: &mut Disk) {
        self.opened.clear();
        self.queue.clear();
        self.open(world, disk, ResourceType::Cluster);
        self.open(world, disk, ResourceType::Listener);
        let kinds: BTreeSet<_> = self.wanted.iter().map(|(kind, _)| *kind).collect();
        for kind in kinds {
            self.open(world, disk, kind);
        }
    }

    fn open(&mut self, world: &World, disk: &mut Disk, kind: ResourceType) {
        if !self.opened.insert(kind) {
            return;
        }
        let mut request = delta_request(kind, &[]);
        let names = self.wanted.iter().filter(|(of, _)| *of == kind);
        request.resource_names_subscribe = names.map(|(_, name)| name.clone()).collect();
        let has = self.has.iter().filter(|((of, _), _)| *of == kind);
        request.initial_resource_versions = has
            .map(|((_, name), version)| (name.clone(), version.clone()))
            .collect();
        self.send(world, disk, request);
    }

    pub(super) fn subscribe(&mut self, world: &World, disk: &mut Disk, kind: ResourceType, name: &str) {
        self.wanted.insert((kind, name.to_owned()));
        if self.opened.contains(&kind) {
            self.send(world, disk, delta_request(kind, &[name]));
        } else {
            self.open(world, disk, kind);
        }
    }

    pub(super) fn unsubscribe(&mut self, world: &World, disk: &mut Disk, kind: ResourceType, name: &str) {
        let key = (kind, name.to_owned());
        if self.wanted.remove(&key) && self.opened.contains(&kind) {
            self.has.remove(&key);
            let mut request = delta_request(kind, &[]);
            request.resource_names_unsubscribe = vec![name.to_owned()];
            self.send(world, disk, request);
        }
    }

    fn send(&mut self, world: &World, disk: &mut Disk, mut request: DeltaDiscoveryRequest) {
        match &mut self.peer {
            Peer::Controller(peer) => {
                let (stream, live) = &mut **peer;
                let before = request.clone();
                let heard = live.on_request(&disk.store, &mut request);
                assert_eq!(heard.altered, before != request);
                disk.write(&heard.changes);
                stream
                    .on_request(&received(&request), world.published())
                    .expect("the request is in bounds");
                self.receive(world);
            }
            Peer::Nobody(standby) => {
                for answer in standby.on_request(&disk.store, &request) {
                    let bodies = answer.resources.iter().map(|place| disk.at(*place)).collect();
                    let message = answer.encode(bodies);
                    self.queue
                        .push_back(DeltaDiscoveryResponse::decode(message).expect("a response"));
                }
            }
        }
    }

    /// Takes in what the controller has to say.
    pub(super) fn receive(&mut self, world: &World) {
        let Peer::Controller(peer) = &mut self.peer else {
            return;
        };
        for response in peer.0.next_responses(world.published()) {
            let mut message = Vec::new();
            response.encode(&mut message);
            let message = Bytes::from(message);
            peer.1.on_response(message.clone());
            self.queue
                .push_back(DeltaDiscoveryResponse::decode(message).expect("a response"));
        }
    }

    /// The controller's stream has had its time, and so has the relay's.
    pub(super) fn settle(&mut self, world: &World, disk: &mut Disk) {
        if let Peer::Controller(peer) = &mut self.peer {
            peer.0.settle();
            disk.write(&peer.1.settle(&disk.store));
        }
        self.receive(world);
    }

    /// Takes one response in and answers it. Returns whether there was one.
    pub(super) fn take(
        &mut self,
        world: &World,
        disk: &mut Disk,
        is_bad: impl Fn(ResourceType, &str, &str) -> bool,
    ) -> bool {
        let Some(response) = self.queue.pop_front() else {
            return false;
        };
        let kind = ResourceType::from_type_url(&response.type_url).expect("a kind");
        let bad = response
            .resources
            .iter()
            .any(|resource| is_bad(kind, &resource.name, &resource.version));
        if !bad {
            for resource in response.resources {
                let key = (kind, resource.name);
                if kind.allows_wildcard() || self.wanted.contains(&key) {
                    self.has.insert(key, resource.version);
                }
            }
            for name in response.removed_resources {
                self.has.remove(&(kind, name));
            }
        }
        let mut request = delta_request(kind, &[]);
        request.response_nonce = response.nonce;
        request.error_detail = bad.then(rejection).flatten();
        self.send(world, disk, request);
        true
    }

    pub(super) fn take_all(&mut self, world: &World, disk: &mut Disk) {
        let mut rounds = 0;
        while self.take(world, disk, |_, _, _| false) {
            rounds += 1;
            assert!(rounds < 10_000, "it never comes to rest");
        }
    }

    /// Responses that were not looked at yet.
    pub(super) fn waits(&self) -> usize {
        self.queue.len()
    }

    /// What these would change.
    pub(super) fn news(&self) -> usize {
        let news = |response: &DeltaDiscoveryResponse| {
            let kind = ResourceType::from_type_url(&response.type_url).expect("a kind");
            let removed = response.removed_resources.iter();
            let removed = removed.filter(|name| self.has.contains_key(&(kind, (*name).clone())));
            response.resources.len() + removed.count()
        };
        self.queue.iter().map(news).sum()
    }

    /// What the proxy has, as the store would say it.
    pub(super) fn tags(&self) -> BTreeMap<(ResourceType, String), Version> {
        let has = self.has.iter();
        has.map(|(key, version)| (key.clone(), tag(version))).collect()
    }
}
