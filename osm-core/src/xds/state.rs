//! The state-of-the-world variant: `StreamAggregatedResources`.
//!
//! Clusters and listeners are always sent whole. Of the kinds that are subscribed to by name only what changed is sent,
//! which the protocol allows and Envoy and gRPC understand.

use std::{collections::BTreeSet, sync::Arc};

use osm_proto::envoy::service::discovery::v3::DiscoveryRequest;

use super::{
    Due, KindStatus, Limits, Outcome, Response, StreamError,
    delta::WILDCARD,
    ledger::Ledger,
    session::{Session, Variant},
};
use crate::{
    identity::ProxyIdentity,
    resource::{ResourceType, Snapshot, TypeSet},
};

/// One proxy's state-of-the-world stream.
#[derive(Debug)]
pub struct StateStream {
    session: Session,
}

impl StateStream {
    /// The stream of a proxy that has proved its identity.
    pub fn new(proxy: ProxyIdentity, limits: Limits) -> Self {
        Self {
            session: Session::new(proxy, limits, Variant::State),
        }
    }

    /// Whose stream it is.
    pub fn proxy(&self) -> &ProxyIdentity {
        self.session.proxy()
    }

    /// Takes in a request. A request that answers anything but the newest response of its kind is ignored.
    ///
    /// The version it reports is not read: the first request of a kind is always answered, and later ones are known by
    /// their nonce.
    ///
    /// # Errors
    /// [`StreamError`] when the stream must end.
    pub fn on_request(
        &mut self,
        request: &DiscoveryRequest,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Outcome, StreamError> {
        if request.type_url.is_empty() {
            return Err(StreamError::NoType);
        }
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return Ok(Outcome::UnknownType);
        };
        self.session
            .check(kind, request.resource_names.iter().map(String::as_str))?;
        let set = self.session.current_set(kind, snapshot);

        let Some(ledger) = self.session.ledger(kind) else {
            let mut ledger = Ledger::default();
            let names = &request.resource_names;
            let wildcard =
                kind.allows_wildcard() && (names.is_empty() || names.iter().any(|name| name == WILDCARD));
            ledger.owes_answer = kind.allows_wildcard();
            ledger.subscription.set_wildcard(wildcard);
            subscribe(&mut ledger, wildcard, names, &set);
            ledger.subscription.share(&set);
            self.session.open(kind, ledger, false);
            return Ok(Outcome::Subscribed(kind));
        };
        // Before the first response there is no nonce to know a request by.
        let nonce = &request.response_nonce;
        let is_newest = match ledger.last_nonce() {
            0 => nonce.is_empty(),
            last => nonce.parse() == Ok(last),
        };
        if !is_newest {
            return Ok(Outcome::Stale(kind));
        }
        let outcome = if ledger.in_flight() {
            let error = request
                .error_detail
                .as_ref()
                .map(|status| status.message.as_str());
            self.session.answer(kind, nonce, error)
        } else {
            Outcome::Subscribed(kind)
        };
        if let Some(ledger) = self.session.ledger(kind) {
            resubscribe(ledger, kind, &request.resource_names, &set);
        }
        Ok(outcome)
    }

    /// What to send now. To be called after every request and whenever a newer snapshot concerns the proxy.
    pub fn next_responses(&mut self, snapshot: &Arc<Snapshot>) -> Vec<Response> {
        self.due(snapshot, usize::MAX).responses
    }

    /// About how many names must be looked at to find out what is due: 0 when no more than single resources have changed.
    pub fn weight(&self, snapshot: &Snapshot) -> usize {
        self.session.weight(snapshot)
    }

    /// As [`Self::next_responses`], but without those of `limit` bytes or more, and without what must come after them.
    pub fn due(&mut self, snapshot: &Arc<Snapshot>, limit: usize) -> Due {
        self.session.due(snapshot, limit)
    }

    /// How each kind that was opened stands.
    pub fn status(&self) -> Vec<KindStatus> {
        self.session.status()
    }
}

fn subscribe(ledger: &mut Ledger, wildcard: bool, names: &[String], set: &TypeSet) {
    for name in names.iter().filter(|name| !(wildcard && *name == WILDCARD)) {
        let name = Ledger::intern(name, set);
        ledger.ask(name.clone());
        ledger.subscription.insert(name);
    }
}

/// Replaces the names: new ones are answered, those left out are forgotten.
fn resubscribe(ledger: &mut Ledger, kind: ResourceType, names: &[String], set: &Arc<TypeSet>) {
    let explicit = kind.allows_wildcard() && names.iter().any(|name| name == WILDCARD);
    // An empty list stays a wildcard for whoever never named anything.
    let legacy = names.is_empty() && ledger.subscription.is_wildcard() && ledger.subscription.len() == 0;
    let wildcard = explicit || legacy;
    let wanted: BTreeSet<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !(explicit && *name == WILDCARD))
        .collect();
    if wildcard && !ledger.subscription.is_wildcard() {
        ledger.subscribe_all();
    }
    ledger.subscription.set_wildcard(wildcard);
    let dropped: Vec<_> = ledger
        .subscription
        .iter()
        .filter(|name| !wanted.contains(name.as_ref()))
        .cloned()
        .collect();
    for name in dropped {
        ledger.unsubscribe(&name);
    }
    for name in wanted {
        if !ledger.subscription.names(name) {
            let name = Ledger::intern(name, set);
            ledger.ask(name.clone());
            ledger.subscription.insert(name);
        }
    }
    ledger.subscription.share(set);
}
