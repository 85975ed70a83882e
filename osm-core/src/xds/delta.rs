//! The incremental variant: `DeltaAggregatedResources`.

use std::sync::Arc;

use super::{
    Due, KindStatus, Limits, Outcome, Response, StreamError,
    ledger::{FEW, Ledger},
    request::{DeltaRequest, Reported, texts},
    session::{Session, Variant},
};
use crate::{
    identity::ProxyIdentity,
    resource::{ResourceType, Snapshot, TypeSet},
};

/// The name that subscribes to everything (xDS protocol, "How the client specifies what resources to return").
pub(super) const WILDCARD: &str = "*";

/// One proxy's incremental stream.
#[derive(Debug)]
pub struct DeltaStream {
    session: Session,
}

impl DeltaStream {
    /// The stream of a proxy that has proved its identity.
    pub fn new(proxy: ProxyIdentity, limits: Limits) -> Self {
        Self {
            session: Session::new(proxy, limits, Variant::Delta),
        }
    }

    /// Whose stream it is.
    pub fn proxy(&self) -> &ProxyIdentity {
        self.session.proxy()
    }

    /// Takes in a request. `snapshot` is the newest; what the proxy reports to have is compared with it.
    ///
    /// The node of the request is not read: who the proxy is was settled by its certificate.
    ///
    /// # Errors
    /// [`StreamError`] when the stream must end.
    pub fn on_request(
        &mut self,
        request: &DeltaRequest,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Outcome, StreamError> {
        if request.type_url.is_empty() {
            return Err(StreamError::NoType);
        }
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return Ok(Outcome::UnknownType);
        };
        self.session
            .check_count(kind, request.initial_resource_versions.len())?;
        let names = texts(&request.resource_names_subscribe)?;
        let dropped = texts(&request.resource_names_unsubscribe)?;
        let reported = Reported::new(&request.initial_resource_versions)?;
        self.session.check(kind, names.iter().copied())?;
        self.session.check(kind, dropped.iter().copied())?;
        self.session.check(kind, reported.names())?;

        let set = self.session.current_set(kind, snapshot);
        let outcome = if self.session.ledger(kind).is_none() {
            self.open(kind, &names, &reported, snapshot);
            Outcome::Subscribed(kind)
        } else {
            let outcome = if request.response_nonce.is_empty() {
                Outcome::Subscribed(kind)
            } else {
                let error = request
                    .error_detail
                    .as_ref()
                    .map(|status| status.message.as_str());
                self.session.answer(kind, &request.response_nonce, error)
            };
            if let Some(ledger) = self.session.ledger(kind) {
                subscribe(ledger, kind, &names, &set);
            }
            outcome
        };
        let Some(ledger) = self.session.ledger(kind) else {
            return Ok(outcome);
        };
        let some = !dropped.is_empty() && !ledger.subscription.is_wildcard();
        if !(some && ledger.unsubscribe_rest(&dropped, &set)) {
            for name in dropped {
                unsubscribe(ledger, kind, name);
            }
        }
        ledger.subscription.share(&set);
        let count = ledger.subscription.len();
        self.session.check_count(kind, count)?;
        Ok(outcome)
    }

    /// The first request of a kind: what the proxy reports to have is not sent again.
    fn open(
        &mut self,
        kind: ResourceType,
        names: &[&str],
        reported: &Reported<'_>,
        snapshot: &Arc<Snapshot>,
    ) {
        let mut ledger = Ledger::default();
        let legacy = names.is_empty();
        let wildcard = kind.allows_wildcard() && (legacy || names.contains(&WILDCARD));
        ledger.subscription.set_wildcard(wildcard);
        let base = self.session.base(kind, snapshot);
        let missing = base.set.all_but(names, FEW).filter(|_| !wildcard);
        if let Some(missing) = missing {
            // What sidecars do: they name nearly all there is.
            ledger.subscribe_whole(&base.set, missing, reported.is_empty());
            if !reported.is_empty() {
                for name in reported.lacks(names) {
                    ledger.ask(Ledger::intern(name, &base.set));
                }
            }
        } else {
            let is_name = |name: &&str| !(wildcard && *name == WILDCARD);
            for name in reported.lacks(names).filter(is_name) {
                ledger.ask(Ledger::intern(name, &base.set));
            }
            for name in names.iter().copied().filter(is_name) {
                ledger.subscription.insert(Ledger::intern(name, &base.set));
            }
        }
        if reported.is_empty() {
            ledger.owes_answer = wildcard;
        } else {
            ledger.start(base, reported);
        }
        self.session.open(kind, ledger, !reported.is_empty());
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

    /// Tells that the proxy has had time to open all kinds it uses, some seconds after the stream began. Until then
    /// what a reconnected proxy has too much of is not removed, because it may still refer to it.
    pub fn settle(&mut self) {
        self.session.settle();
    }

    /// Names and exceptions it holds of its own, not shared with other streams.
    #[cfg(test)]
    pub(super) fn memory(&mut self) -> usize {
        ResourceType::ALL
            .iter()
            .filter_map(|kind| self.session.ledger(*kind).map(|ledger| ledger.own()))
            .sum()
    }

    /// How each kind that was opened stands.
    pub fn status(&self) -> Vec<KindStatus> {
        self.session.status()
    }
}

/// Subscribes to names in a later request: all of them are answered, because the proxy may have forgotten them.
fn subscribe(ledger: &mut Ledger, kind: ResourceType, names: &[&str], set: &Arc<TypeSet>) {
    // A proxy that is to see all there is, and saw little before.
    if !names.is_empty()
        && !ledger.subscription.is_wildcard()
        && let Some(unnamed) = set.all_but(names, names.len())
        && ledger.subscribe_rest(set, unnamed)
    {
        return;
    }
    for name in names.iter().copied() {
        if name == WILDCARD && kind.allows_wildcard() {
            ledger.subscribe_all();
        } else {
            let name = Ledger::intern(name, set);
            ledger.ask(name.clone());
            ledger.subscription.insert(name);
        }
    }
}

fn unsubscribe(ledger: &mut Ledger, kind: ResourceType, name: &str) {
    if name == WILDCARD && kind.allows_wildcard() {
        ledger.subscription.set_wildcard(false);
        return;
    }
    let was_named = ledger.subscription.names(name);
    ledger.unsubscribe(name);
    // Inside a wildcard the proxy cannot know whether it is still to have the resource: it is told.
    if was_named && ledger.subscription.is_wildcard() {
        ledger.ask(name.into());
    }
}
