//! What both variants share: one ledger a kind, and the order in which they are served.
//!
//! Make before break (xDS protocol, "Eventual consistency considerations"): what is new goes out in the order CDS, EDS,
//! LDS, RDS, SDS, and a kind waits while an earlier one still has something to send, except for endpoints and secrets.
//! What is gone is removed in the opposite direction, when the proxy has confirmed everything that might still have
//! referred to it.

use std::sync::Arc;

use super::{
    Due, Limits, Outcome, RESPONSE_BYTES, Rejection, Response, StreamError,
    base::Base,
    ledger::{Diff, Ledger},
    printable,
};
use crate::{
    identity::ProxyIdentity,
    resource::{Resource, ResourceType, Snapshot, TypeSet, Version, View},
};

/// Which variant of the protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// Responses carry what changed.
    Delta,
    /// Responses of clusters and listeners carry all of them, others what changed.
    State,
}

/// One kind of a stream, for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindStatus {
    /// The kind.
    pub kind: ResourceType,
    /// Whether the proxy subscribed to all there is.
    pub wildcard: bool,
    /// How many names it subscribed to.
    pub names: usize,
    /// Whether a response awaits its answer.
    pub in_flight: bool,
    /// The revision of the snapshot that was compared last.
    pub revision: u64,
    /// The resources it rejected, with the versions that are not offered again.
    pub rejected: Vec<(Arc<str>, Version)>,
}

#[derive(Debug)]
pub(super) struct Session {
    proxy: ProxyIdentity,
    limits: Limits,
    variant: Variant,
    ledgers: [Option<Box<Ledger>>; ResourceType::ALL.len()],
    nonce: u64,
    /// A reconnected proxy may not have opened all its kinds yet.
    opening: bool,
    /// Clusters that such a proxy was sent before it opened its endpoints.
    warming: Vec<Arc<str>>,
}

impl Session {
    pub(super) fn new(proxy: ProxyIdentity, limits: Limits, variant: Variant) -> Self {
        Self {
            proxy,
            limits,
            variant,
            ledgers: Default::default(),
            nonce: 0,
            opening: false,
            warming: Vec::new(),
        }
    }

    pub(super) fn proxy(&self) -> &ProxyIdentity {
        &self.proxy
    }

    /// The proxy's own view, if the mesh knows the proxy under the identity it proved.
    fn view<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Arc<View>> {
        let entry = snapshot.proxy(self.proxy.uuid)?;
        if entry.identity != self.proxy.service {
            return None;
        }
        snapshot.view(entry.class)
    }

    /// The kind's resources of the proxy in `snapshot`.
    pub(super) fn base(&self, kind: ResourceType, snapshot: &Arc<Snapshot>) -> Base {
        let set = self
            .view(snapshot)
            .map(|view| view.set(kind).clone())
            .unwrap_or_default();
        Base {
            set,
            snapshot: snapshot.clone(),
        }
    }

    /// What a kind holds, to be changed by what the proxy says.
    pub(super) fn ledger(&mut self, kind: ResourceType) -> Option<&mut Ledger> {
        let ledger = self.ledgers[kind as usize].as_deref_mut()?;
        ledger.compare_again();
        Some(ledger)
    }

    pub(super) fn open(&mut self, kind: ResourceType, ledger: Ledger, reconnected: bool) {
        self.opening |= reconnected;
        self.ledgers[kind as usize] = Some(Box::new(ledger));
        if kind == ResourceType::Endpoint {
            let clusters = std::mem::take(&mut self.warming);
            self.warm(clusters);
        }
    }

    pub(super) fn settle(&mut self) {
        self.opening = false;
        self.warming = Vec::new();
    }

    /// Checks what a request lists.
    pub(super) fn check<'a>(
        &self,
        kind: ResourceType,
        names: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<(), StreamError> {
        self.check_count(kind, names.len())?;
        for name in names {
            if name.len() > self.limits.name_bytes {
                return Err(StreamError::NameTooLong {
                    length: name.len(),
                    limit: self.limits.name_bytes,
                });
            }
        }
        Ok(())
    }

    pub(super) fn check_count(&self, kind: ResourceType, count: usize) -> Result<(), StreamError> {
        let limit = self.limits.names;
        if count > limit {
            Err(StreamError::TooManyNames { kind, count, limit })
        } else {
            Ok(())
        }
    }

    /// Takes note of an answer. The kind must be open.
    pub(super) fn answer(&mut self, kind: ResourceType, nonce: &str, error: Option<&str>) -> Outcome {
        let whole = self.is_whole(kind);
        let Some(ledger) = self.ledger(kind) else {
            return Outcome::Stale(kind);
        };
        let Ok(nonce) = nonce.parse() else {
            return Outcome::Stale(kind);
        };
        match error {
            None if ledger.accept(nonce, whole) => Outcome::Accepted(kind),
            None => Outcome::Stale(kind),
            Some(message) => match ledger.reject(nonce, message, kind.allows_wildcard()) {
                Some(resources) => Outcome::Rejected(Rejection {
                    kind,
                    resources,
                    message: printable(message),
                }),
                None => Outcome::Stale(kind),
            },
        }
    }

    /// Whether every response of the kind carries all of it.
    fn is_whole(&self, kind: ResourceType) -> bool {
        self.variant == Variant::State && kind.allows_wildcard()
    }

    /// About how many names must be looked at to find out what is due.
    pub(super) fn weight(&self, snapshot: &Snapshot) -> usize {
        let Some(view) = self.view(snapshot) else { return 0 };
        let weight = |kind: ResourceType| {
            let old = &self.ledgers[kind as usize].as_deref()?.base().set;
            let new = view.set(kind);
            (!Arc::ptr_eq(old, new)).then(|| old.len() + new.len())
        };
        ResourceType::ALL.into_iter().filter_map(weight).sum()
    }

    pub(super) fn due(&mut self, snapshot: &Arc<Snapshot>, limit: usize) -> Due {
        let mut due = Due::default();
        let Some(view) = self.view(snapshot).cloned() else {
            return due;
        };
        let target = |kind| Base {
            set: view.set(kind).clone(),
            snapshot: snapshot.clone(),
        };
        let mut blocked = false;
        for kind in ResourceType::ALL {
            // Secrets wait for nobody: they refer to nothing, and a renewed certificate must not be late. Endpoints do
            // not, either: the proxy names only clusters it has, and Envoy answers for clusters when all are warm, for
            // which it needs their endpoints.
            let waits = !matches!(kind, ResourceType::Endpoint | ResourceType::Secret);
            if !(blocked && waits) {
                let removals = kind == ResourceType::Listener;
                blocked |= !self.advance(kind, target(kind), removals, limit, &mut due);
            }
        }
        use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};
        for (kind, referrers) in [
            (Route, &[Listener][..]),
            (Cluster, &[Listener, Route]),
            (Endpoint, &[Listener, Route, Cluster]),
            (Secret, &[Listener, Route, Cluster]),
        ] {
            if referrers
                .iter()
                .all(|referrer| self.is_settled(*referrer, &target(*referrer)))
            {
                self.advance(kind, target(kind), true, limit, &mut due);
            }
        }
        due
    }

    /// Whether the proxy has confirmed that it has all of `target`, or does not use the kind.
    fn is_settled(&self, kind: ResourceType, target: &Base) -> bool {
        match &self.ledgers[kind as usize] {
            Some(ledger) => !ledger.in_flight() && ledger.base().is(target) && ledger.is_clean(),
            None => !self.opening,
        }
    }

    /// Sends what is due of one kind. Returns whether nothing is left to be sent before the kinds that come after it.
    fn advance(
        &mut self,
        kind: ResourceType,
        target: Base,
        removals: bool,
        limit: usize,
        due: &mut Due,
    ) -> bool {
        let whole = self.is_whole(kind);
        let state = self.variant == Variant::State;
        let Some(ledger) = self.ledgers[kind as usize].as_deref_mut() else {
            return true;
        };
        if ledger.is_at(&target) && !ledger.owes_answer {
            return true;
        }
        match ledger.found(&target, removals) {
            Some(bytes) if ledger.in_flight() => return bytes == 0,
            Some(0) if !ledger.owes_answer => return true,
            Some(bytes) if bytes >= limit => {
                due.withheld = true;
                return false;
            }
            _ => {}
        }
        let room = if whole { usize::MAX } else { RESPONSE_BYTES };
        let mut diff = ledger.diff(&target, removals, room);
        if ledger.in_flight() {
            let bytes = match diff.is_empty() {
                true => 0,
                false => size(&target, &diff, whole).max(1),
            };
            ledger.find(target, removals, bytes);
            return bytes == 0;
        }
        while diff.is_empty() && ledger.clear_suspects() {
            diff = ledger.diff(&target, removals, room);
        }
        // Without a whole, state-of-the-world has no words for what does not exist.
        let silent = state && !whole && diff.resources.is_empty();
        if (diff.is_empty() && !ledger.owes_answer) || silent {
            // What only waits to be removed is found again when it may be. Noting it name by name would cost thousands of
            // notes, for thousands of proxies at once, that are thrown away a moment later.
            if !diff.waits {
                ledger.commit(target.clone(), &mut diff, None);
            }
            ledger.find(target, removals, 0);
            return true;
        }
        let bytes = size(&target, &diff, whole);
        if bytes >= limit {
            ledger.find(target, removals, bytes);
            due.withheld = true;
            return false;
        }
        self.nonce += 1;
        ledger.commit(target, &mut diff, Some(self.nonce));
        let version = state.then(|| version_of(&ledger.whole()));
        let changed = std::mem::take(&mut diff.resources);
        if kind == ResourceType::Cluster {
            self.warm(changed.iter().map(|cluster| cluster.name().clone()));
        }
        let resources = match &self.ledgers[kind as usize] {
            Some(ledger) if whole => ledger.whole(),
            _ => changed,
        };
        let removed = if state { Vec::new() } else { diff.removed };
        due.responses.push(Response {
            kind,
            nonce: self.nonce,
            resources,
            removed,
            version,
        });
        !diff.more
    }

    /// A changed cluster is used only when its endpoints have been received after it, changed or not; the proxy, which
    /// is subscribed to them already, does not ask.
    fn warm(&mut self, clusters: impl IntoIterator<Item = Arc<str>>) {
        let Some(endpoints) = self.ledgers[ResourceType::Endpoint as usize].as_deref_mut() else {
            if self.opening {
                self.warming.extend(clusters);
            }
            return;
        };
        for name in clusters {
            if endpoints.subscription.names(&name) {
                endpoints.ask(name);
            }
        }
    }

    pub(super) fn status(&self) -> Vec<KindStatus> {
        let open = ResourceType::ALL.into_iter().zip(&self.ledgers);
        let status = |(kind, ledger): (ResourceType, &Option<Box<Ledger>>)| {
            let ledger = ledger.as_deref()?;
            Some(KindStatus {
                kind,
                wildcard: ledger.subscription.is_wildcard(),
                names: ledger.subscription.len(),
                in_flight: ledger.in_flight(),
                revision: ledger.base().snapshot.revision,
                rejected: ledger
                    .parked()
                    .iter()
                    .map(|(name, version)| (name.clone(), *version))
                    .collect(),
            })
        };
        open.filter_map(status).collect()
    }

    /// The set of the kind in the snapshot that the kind's ledger is at.
    pub(super) fn current_set(&mut self, kind: ResourceType, snapshot: &Arc<Snapshot>) -> Arc<TypeSet> {
        self.base(kind, snapshot).set
    }
}

/// About how many bytes the response to a comparison has.
fn size(target: &Base, diff: &Diff, whole: bool) -> usize {
    let length = |resource: &Arc<Resource>| resource.encoded().len();
    if !whole {
        return diff.resources.iter().map(length).sum();
    }
    let slots = target.set.iter().map(|(_, slot)| *slot);
    slots
        .filter_map(|slot| target.snapshot.resource(slot))
        .map(length)
        .sum()
}

/// The version of several resources together, whatever their order.
fn version_of(resources: &[Arc<Resource>]) -> Version {
    let mut entries: Vec<_> = resources
        .iter()
        .map(|resource| (resource.name(), resource.version()))
        .collect();
    entries.sort_unstable();
    let mut text = String::new();
    for (name, version) in entries {
        text.push_str(name);
        text.push('\0');
        text.push_str(&version.to_string());
        text.push('\0');
    }
    Version::of(text.as_bytes())
}
