//! A stream that passes: what the proxy asked for, was sent, and accepted.
//!
//! Invariant: a resource is kept when the proxy has accepted it and dropped when it has given it up; what was rejected,
//! or never answered, leaves what was kept before.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use osm_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;

use super::{
    LOST,
    store::{Change, Store},
    tag,
    wire::{Label, Response},
};
use crate::resource::{ResourceType, Version};

/// The name that subscribes to everything.
pub(super) const WILDCARD: &str = "*";
/// Responses of one kind that may await their answers. The controller sends one at a time.
const IN_FLIGHT: usize = 8;

/// What a request brought about.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// To be written down.
    pub changes: Vec<Change>,
    /// The request was changed, so that the controller sends what the store has lost.
    pub altered: bool,
}

/// One stream between a proxy and a controller.
#[derive(Debug, Default)]
pub struct Live {
    kinds: [Kind; ResourceType::ALL.len()],
    settled: bool,
}

#[derive(Debug, Default)]
struct Kind {
    opened: bool,
    /// It reported to have something when it opened the kind.
    reported: bool,
    /// Something was accepted, or reported.
    answered: bool,
    /// Names that were asked for and not answered yet.
    awaited: BTreeSet<Arc<str>>,
    /// Names the proxy has of what is kept. Not needed once it was compared with the store.
    held: BTreeSet<Arc<str>>,
    in_flight: VecDeque<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    resources: Vec<(Arc<str>, Version, Bytes)>,
    removed: Vec<Arc<str>>,
}

impl Live {
    /// A stream that has just begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the proxy is starting: it has nothing yet, and cannot serve until it is answered.
    pub fn is_starting(&self) -> bool {
        let clusters = &self.kinds[ResourceType::Cluster as usize];
        clusters.opened && !clusters.reported && !clusters.answered
    }

    /// A request of the proxy, before it is passed on.
    pub fn on_request(&mut self, store: &Store, request: &mut DeltaDiscoveryRequest) -> Heard {
        let mut heard = Heard::default();
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return heard;
        };
        let state = &mut self.kinds[kind as usize];
        let first = !std::mem::replace(&mut state.opened, true);
        if first {
            state.reported = !request.initial_resource_versions.is_empty();
            state.answered = state.reported;
            for (name, version) in &mut request.initial_resource_versions {
                let name = Arc::from(name.as_str());
                if store.version(kind, &name) == Some(tag(version)) {
                    state.held.insert(name);
                } else {
                    LOST.clone_into(version);
                    state.awaited.insert(name);
                    heard.altered = true;
                }
            }
        }
        if !request.response_nonce.is_empty() {
            let accepted = request.error_detail.is_none();
            state.answer(kind, store, &request.response_nonce, accepted, &mut heard.changes);
        }
        for name in &request.resource_names_subscribe {
            let everything = kind.allows_wildcard() && name == WILDCARD;
            let has_it = first && state.held.contains(name.as_str());
            if !everything && !has_it {
                state.awaited.insert(name.as_str().into());
            }
        }
        for name in &request.resource_names_unsubscribe {
            state.give_up(name);
            if store.version(kind, name).is_some() {
                heard.changes.push(Change::Drop {
                    kind,
                    name: name.as_str().into(),
                });
            }
        }
        if self.settled {
            state.held = BTreeSet::new();
        }
        heard
    }

    /// A response of the controller, before it is passed on. One that cannot be read is left to the proxy.
    pub fn on_response(&mut self, message: Bytes) {
        let Ok(response) = Response::decode(message) else {
            return;
        };
        let Some(kind) = ResourceType::from_type_url(&response.type_url) else {
            return;
        };
        let label = |body: Bytes| {
            let label = Label::decode(body.clone()).ok()?;
            Some((Arc::from(label.name), tag(&label.version), body))
        };
        let in_flight = &mut self.kinds[kind as usize].in_flight;
        if in_flight.len() == IN_FLIGHT {
            in_flight.pop_front();
        }
        in_flight.push_back(InFlight {
            nonce: response.nonce,
            resources: response.resources.into_iter().filter_map(label).collect(),
            removed: response.removed.into_iter().map(Arc::from).collect(),
        });
    }

    /// To be called now and then. Once the proxy has all it asked for, what is kept beyond that is dropped, and the
    /// rest is a whole configuration.
    pub fn settle(&mut self, store: &Store) -> Vec<Change> {
        let whole = [ResourceType::Cluster, ResourceType::Listener]
            .iter()
            .all(|kind| self.kinds[*kind as usize].answered);
        let quiet = |kind: &Kind| kind.awaited.is_empty() && kind.in_flight.is_empty();
        if self.settled || !whole || !self.kinds.iter().all(quiet) {
            return Vec::new();
        }
        self.settled = true;
        let mut changes = Vec::new();
        for kind in ResourceType::ALL {
            let held = std::mem::take(&mut self.kinds[kind as usize].held);
            let stale = store.names(kind).filter(|name| !held.contains(*name));
            changes.extend(stale.map(|name| Change::Drop {
                kind,
                name: name.clone(),
            }));
        }
        if !store.is_complete() {
            changes.push(Change::Complete);
        }
        changes
    }
}

impl Kind {
    fn answer(
        &mut self,
        kind: ResourceType,
        store: &Store,
        nonce: &str,
        accepted: bool,
        changes: &mut Vec<Change>,
    ) {
        let place = self.in_flight.iter().position(|each| each.nonce == nonce);
        let Some(response) = place.and_then(|place| self.in_flight.remove(place)) else {
            return;
        };
        self.answered |= accepted;
        for (name, version, body) in response.resources {
            self.awaited.remove(&name);
            if accepted {
                self.held.insert(name.clone());
                changes.push(Change::Keep {
                    kind,
                    name,
                    version,
                    body,
                });
            } else if store.version(kind, &name).is_some() {
                // The proxy goes on with what it had, and so does the store.
                self.held.insert(name);
            }
        }
        for name in response.removed {
            self.awaited.remove(&name);
            if accepted && store.version(kind, &name).is_some() {
                self.held.remove(&name);
                changes.push(Change::Drop { kind, name });
            }
        }
    }

    /// The proxy wants this name no longer, also not of what is on its way.
    fn give_up(&mut self, name: &str) {
        self.awaited.remove(name);
        self.held.remove(name);
        for response in &mut self.in_flight {
            response.resources.retain(|(known, _, _)| &**known != name);
        }
    }
}
