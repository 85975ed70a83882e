//! A stream that no controller answers: the proxy is served what is kept.
//!
//! Invariants: what the proxy reports to have is not touched, since it may be newer than what is kept; nothing that it
//! has is removed; what it asks for and nobody knows is said not to exist, so that its start does not wait for it.

use std::collections::BTreeSet;

use bytes::Bytes;
use osm_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;

use super::{
    live::WILDCARD,
    store::{Place, Store},
    wire::Response,
};
use crate::resource::ResourceType;

/// Most bytes of resources in one answer; one more resource may fit.
const ANSWER_BYTES: usize = 1 << 20;

/// One response, whose resources are still to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The kind of its resources.
    pub kind: ResourceType,
    /// Where the encoded resources are in the journal.
    pub resources: Vec<Place>,
    /// The names that are said not to exist.
    pub removed: Vec<String>,
    nonce: u64,
}

impl Answer {
    /// The message, with the resources that were read from [`Answer::resources`].
    pub fn encode(self, resources: Vec<Bytes>) -> Bytes {
        let response = Response {
            resources,
            type_url: self.kind.type_url().to_owned(),
            nonce: self.nonce.to_string(),
            removed: self.removed,
        };
        response.encode_to_vec().into()
    }
}

/// One stream that is answered from the store.
#[derive(Debug, Default)]
pub struct Standby {
    /// What the proxy reported to have, of each kind it opened.
    reported: [Option<BTreeSet<String>>; ResourceType::ALL.len()],
    nonce: u64,
}

impl Standby {
    /// A stream that has just begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to answer to a request. The store must be complete.
    pub fn on_request(&mut self, store: &Store, request: &DeltaDiscoveryRequest) -> Vec<Answer> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return Vec::new();
        };
        let names = &request.resource_names_subscribe;
        let opened = &mut self.reported[kind as usize];
        let first = opened.is_none();
        let reported =
            opened.get_or_insert_with(|| request.initial_resource_versions.keys().cloned().collect());
        let everything = kind.allows_wildcard()
            && (first && names.is_empty() || names.iter().any(|name| name == WILDCARD));

        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        if everything {
            let missing = store.names(kind).filter(|name| !reported.contains(&***name));
            resources.extend(missing.filter_map(|name| store.body(kind, name)));
        }
        for name in names.iter().filter(|name| !(everything && *name == WILDCARD)) {
            let has_it = reported.contains(name);
            match store.body(kind, name) {
                // Asked for again, although it had it: it has forgotten it.
                Some(place) if !(first && has_it) => resources.push(place),
                None if !has_it => removed.push(name.clone()),
                _ => {}
            }
        }
        // Whoever wants everything, and has nothing, is answered also when there is nothing: it waits for that.
        let owed = first && everything && reported.is_empty();
        self.answers(kind, resources, removed, owed)
    }

    fn answers(
        &mut self,
        kind: ResourceType,
        resources: Vec<Place>,
        removed: Vec<String>,
        owed: bool,
    ) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::new();
        let mut bytes = 0;
        for place in resources {
            let length = place.length as usize;
            match answers.last_mut().filter(|_| bytes < ANSWER_BYTES) {
                Some(answer) => answer.resources.push(place),
                None => {
                    bytes = 0;
                    answers.push(self.answer(kind, vec![place]));
                }
            }
            bytes += length;
        }
        if answers.is_empty() && (owed || !removed.is_empty()) {
            answers.push(self.answer(kind, Vec::new()));
        }
        if let Some(last) = answers.last_mut() {
            last.removed = removed;
        }
        answers
    }

    fn answer(&mut self, kind: ResourceType, resources: Vec<Place>) -> Answer {
        self.nonce += 1;
        Answer {
            kind,
            resources,
            removed: Vec::new(),
            nonce: self.nonce,
        }
    }
}
