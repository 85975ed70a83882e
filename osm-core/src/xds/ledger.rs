//! What a proxy has of one kind, as far as the stream knows, and what it should be sent.
//!
//! Invariant: of every subscribed name, the proxy is believed to have what `known` says, or else what `base` holds.
//! Names that are not subscribed to mean nothing: whoever subscribes to a name is answered (`asked`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    base::{Base, Change, Entry},
    request::Reported,
    subscription::Subscription,
};
use crate::resource::{Resource, Slot, TypeSet, TypeSetEntry, Version};

/// A subscription that lacks no more names than these of what there is, is held as all but these.
pub(super) const FEW: usize = 4;

/// What a proxy has of one name, where it is not what the base holds.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// Nothing.
    Nothing,
    /// Something, of a version this stream cannot tell.
    Unknown,
    /// This version, as the proxy reported.
    Version(Version),
    /// This, although the base no longer has it: its removal waits.
    Resource(Arc<Resource>),
}

/// What a kind's next response would carry, and what is left to do after it.
#[derive(Debug, Default)]
pub(super) struct Diff {
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
    known: BTreeMap<Arc<str>, Held>,
    asked: BTreeSet<Arc<str>>,
    /// More could be sent now, had there been room.
    pub(super) more: bool,
    /// All that is left to do is to remove, later: not to be committed.
    pub(super) waits: bool,
}

/// What a proxy keeps of a name for now.
enum Kept<'a> {
    Held(&'a Held),
    Resource(&'a Arc<Resource>),
    Nothing,
}

impl Kept<'_> {
    fn to_held(&self) -> Held {
        match *self {
            Self::Held(held) => held.clone(),
            Self::Resource(resource) => Held::Resource(resource.clone()),
            Self::Nothing => Held::Nothing,
        }
    }
}

impl Diff {
    pub(super) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

/// A response that the proxy has not answered yet.
#[derive(Debug)]
struct InFlight {
    nonce: u64,
    /// The base before it: what differs from it now is what was sent.
    was: Base,
    /// What was sent although it does not differ.
    also: Box<[Arc<str>]>,
    /// How many resources were sent.
    count: usize,
}

/// Names that are asked for together: those of a set that are subscribed to, but for a few. So a new proxy begins, and so
/// goes on one that is to see far more than before; thousands do so at once.
#[derive(Debug)]
struct Together {
    set: Arc<TypeSet>,
    /// Ordered.
    but: Box<[Arc<str>]>,
}

impl Together {
    fn all(set: &Arc<TypeSet>, but: Vec<Arc<str>>) -> Box<Self> {
        Box::new(Self {
            set: set.clone(),
            but: but.into(),
        })
    }

    fn excepts(&self, name: &str) -> bool {
        self.but
            .binary_search_by(|other| other.as_ref().cmp(name))
            .is_ok()
    }

    fn has(&self, name: &str) -> bool {
        self.set.slot(name).is_some() && !self.excepts(name)
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) subscription: Subscription,
    base: Base,
    known: BTreeMap<Arc<str>, Held>,
    asked: BTreeSet<Arc<str>>,
    /// Asked for, too. Rarely anything.
    asked_together: Option<Box<Together>>,
    parked: BTreeMap<Arc<str>, Version>,
    /// Groups of resources that were rejected together, to be offered apart: one bad one must not hold up the others.
    suspects: Vec<Box<[Arc<str>]>>,
    in_flight: Option<Box<InFlight>>,
    /// What the last comparison was made with, whether with removals, and about how many bytes are due by it; 0 if nothing
    /// is. It holds until the proxy says something that matters to it.
    found: Option<(Base, bool, u32)>,
    last_nonce: u64,
    /// An answer is owed even if there is nothing to say.
    pub(super) owes_answer: bool,
}

impl Ledger {
    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// Names and exceptions it holds of its own.
    #[cfg(test)]
    pub(super) fn own(&self) -> usize {
        self.known.len() + self.asked.len() + self.parked.len() + usize::from(!self.subscription.is_shared())
    }

    pub(super) fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The number of the last response of the kind; 0 before the first.
    pub(super) fn last_nonce(&self) -> u64 {
        self.last_nonce
    }

    pub(super) fn parked(&self) -> &BTreeMap<Arc<str>, Version> {
        &self.parked
    }

    /// Whether the proxy is believed to have rejected nothing that it should have.
    pub(super) fn is_clean(&self) -> bool {
        self.parked.is_empty() && self.suspects.is_empty()
    }

    /// About how many bytes a comparison with `target` would find due, if that is known without making it.
    pub(super) fn found(&self, target: &Base, removals: bool) -> Option<usize> {
        let (with, had_removals, bytes) = self.found.as_ref()?;
        (*had_removals == removals && with.is(target)).then_some(*bytes as usize)
    }

    /// Takes note of what a comparison found that was not committed, or of which nothing is sent.
    pub(super) fn find(&mut self, target: Base, removals: bool, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.found = Some((target, removals, bytes));
    }

    /// Forgets what comparisons came to: the proxy said something.
    pub(super) fn compare_again(&mut self) {
        self.found = None;
    }

    /// Starts from what a proxy that was connected before reports: names and versions. It has everything that `base`
    /// holds, with the exceptions that are noted here.
    pub(super) fn start(&mut self, base: Base, reported: &Reported<'_>) {
        self.base = base;
        let set = self.base.set.clone();
        let wildcard = self.subscription.is_wildcard();
        // Both are ordered by name.
        let mut reported = reported.iter().peekable();
        for entry in set.iter() {
            let name = entry.0.as_ref();
            while let Some((unknown, version)) = reported.next_if(|(other, _)| *other < name) {
                self.note(unknown, version, None);
            }
            match reported.next_if(|(other, _)| *other == name) {
                Some((_, version)) => self.note(name, version, Some(entry)),
                None if wildcard => drop(self.known.insert(entry.0.clone(), Held::Nothing)),
                None => {}
            }
        }
        for (unknown, version) in reported {
            self.note(unknown, version, None);
        }
    }

    /// Takes note of a version that the proxy reports to have, unless that is what the base holds. Nearly always it is, and
    /// the name, which all streams share, is left alone: counting it up and down is what threads would wait for.
    fn note(&mut self, name: &str, version: &str, entry: Option<&TypeSetEntry>) {
        let resource = entry.and_then(|(_, slot)| self.base.snapshot.resource(*slot));
        let held = version.parse().map_or(Held::Unknown, Held::Version);
        let same = matches!((&held, resource), (Held::Version(version), Some(resource)) if resource.version() == *version);
        if !same && self.subscription.contains(name) {
            let name = entry.map_or_else(|| name.into(), |(name, _)| name.clone());
            self.known.insert(name, held);
        }
    }

    /// Subscribes to everything; what was not subscribed to by name is not there yet.
    pub(super) fn subscribe_all(&mut self) {
        for (name, _) in self.base.set.iter() {
            if !self.subscription.contains(name) {
                self.known.insert(name.clone(), Held::Nothing);
            }
        }
        self.subscription.set_wildcard(true);
    }

    /// Notes that `name` must be answered, whatever the proxy is believed to have.
    pub(super) fn ask(&mut self, name: Arc<str>) {
        self.found = None;
        self.asked.insert(name);
    }

    /// Subscribes to the names of a set but for those `missing`, and notes that all must be answered if `ask`.
    pub(super) fn subscribe_whole(&mut self, set: &Arc<TypeSet>, missing: Vec<Arc<str>>, ask: bool) {
        self.subscription.name_all(set, missing);
        self.asked_together = ask.then(|| Together::all(set, Vec::new()));
    }

    /// Subscribes to the names of a set but for those `unnamed`, of which some were subscribed to before, and notes that the
    /// names must be answered. Returns whether it did: it is possible only if the subscription is to the set then, all but
    /// a few of it, and to nothing else.
    pub(super) fn subscribe_rest(&mut self, set: &Arc<TypeSet>, unnamed: Vec<Arc<str>>) -> bool {
        let before = |name: &&Arc<str>| self.subscription.names(name);
        let missing: Vec<_> = unnamed.iter().filter(|name| !before(name)).cloned().collect();
        if missing.len() > FEW || self.subscription.len() != unnamed.len() - missing.len() {
            return false;
        }
        self.ask_singly_unless(None);
        self.subscription.name_all(set, missing);
        self.asked_together = Some(Together::all(set, unnamed));
        true
    }

    /// Asks for what is asked for name by name, unless it is of `set`.
    fn ask_singly_unless(&mut self, set: Option<&Arc<TypeSet>>) {
        if let Some(together) = &self.asked_together
            && !set.is_some_and(|set| Arc::ptr_eq(&together.set, set))
        {
            let names = together.set.iter().map(|(name, _)| name);
            let names = names.filter(|name| !together.excepts(name) && self.subscription.contains(name));
            self.asked.extend(names.cloned());
            self.asked_together = None;
        }
    }

    /// Drops a name from the subscription and everything known about it.
    pub(super) fn unsubscribe(&mut self, name: &str) {
        self.ask_singly_unless(None);
        self.subscription.remove(name);
        if !self.subscription.is_wildcard() {
            self.known.remove(name);
            self.asked.remove(name);
            self.parked.remove(name);
        }
    }

    /// Drops these names from the subscription, if the names of `set` are what is left then. Returns whether it did.
    pub(super) fn unsubscribe_rest(&mut self, names: &[&str], set: &Arc<TypeSet>) -> bool {
        self.ask_singly_unless(None);
        if !self.subscription.drop_all_but(names, set) {
            return false;
        }
        self.known.retain(|name, _| self.subscription.names(name));
        self.asked.retain(|name| self.subscription.names(name));
        self.parked.retain(|name, _| self.subscription.names(name));
        true
    }

    /// The name as some set spells it already, so that it is shared.
    pub(super) fn intern(name: &str, set: &TypeSet) -> Arc<str> {
        set.get(name)
            .map_or_else(|| name.into(), |(name, _)| name.clone())
    }

    /// Compares what the proxy has with `target`.
    ///
    /// Removals are left for later unless `removals`, though never the answer to a name that was asked for; so is what
    /// comes after `room` bytes of resources.
    pub(super) fn diff(&mut self, target: &Base, removals: bool, room: usize) -> Diff {
        self.ask_singly_unless(Some(&target.set));
        self.compare(target, removals, room)
    }

    fn compare<'a>(&'a self, target: &'a Base, removals: bool, room: usize) -> Diff {
        let mut diff = Diff::default();
        let mut bytes = 0;
        let group = self.suspects.last();
        let same_set = Arc::ptr_eq(&self.base.set, &target.set);
        // The target's slot is known to whoever asks; the base's is looked up only where it may be another.
        let change = |name: &'a Arc<str>, after: Option<Slot>| Change {
            name,
            before: if same_set { after } else { self.base.set.slot(name) },
            after,
        };
        // A list, as thousands may wait to be removed: a map is not made before it is known to be needed.
        let (mut kept, mut waiting) = (Vec::new(), 0);
        let mut decide = |change: Change<'a>, held: Option<&'a Held>, asked: bool| {
            let name = change.name;
            let (before, entry) = (self.base.at(change.before), target.at(change.after));
            let allowed = asked || group.is_none_or(|group| group.contains(name));
            let mut keep = |diff: &mut Diff| {
                let held = match (held, before) {
                    (Some(held), _) => Kept::Held(held),
                    (None, Entry::Resource(resource)) => Kept::Resource(resource),
                    (None, _) => Kept::Nothing,
                };
                kept.push((name, held));
                if asked {
                    diff.asked.insert(name.clone());
                }
            };
            let has_any = match held {
                Some(Held::Nothing) => false,
                Some(_) => true,
                None => matches!(before, Entry::Resource(_)),
            };
            match entry {
                Entry::Resource(resource) => {
                    let has_it = match (held, before) {
                        (None, Entry::Resource(before)) => before.version() == resource.version(),
                        (Some(Held::Resource(held)), _) => held.version() == resource.version(),
                        (Some(Held::Version(version)), _) => *version == resource.version(),
                        _ => false,
                    };
                    if has_it && !asked {
                        return;
                    }
                    let parked = !asked && self.parked.get(name) == Some(&resource.version());
                    if parked || !allowed {
                        keep(&mut diff);
                    } else if bytes >= room {
                        diff.more = true;
                        keep(&mut diff);
                    } else {
                        bytes += resource.encoded().len();
                        diff.resources.push(resource.clone());
                    }
                }
                Entry::Pending if has_any || asked => keep(&mut diff),
                Entry::Pending => {}
                Entry::Absent if asked || (has_any && removals) => diff.removed.push(name.clone()),
                Entry::Absent if has_any => {
                    waiting += 1;
                    keep(&mut diff);
                }
                Entry::Absent => {}
            }
        };
        let together = self.asked_together.as_ref();
        let is_asked = |name: &str| self.asked.contains(name) || together.is_some_and(|them| them.has(name));
        // What is asked for is answered whether it has changed or not. If that is nearly all of a set, only the others can have
        // changed: the subscription is to names of the set alone, and what came to it since is asked for singly.
        let changes = match together {
            None => self.base.changes(target),
            Some(them) => {
                let others = them.but.iter();
                others.map(|name| change(name, target.set.slot(name))).collect()
            }
        };
        for changed in changes {
            let name = changed.name;
            if self.subscription.contains(name) && !self.known.contains_key(name) && !is_asked(name) {
                decide(changed, None, false);
            }
        }
        for (name, held) in &self.known {
            if self.subscription.contains(name) && !is_asked(name) {
                decide(change(name, target.set.slot(name)), Some(held), false);
            }
        }
        // It is the target's set, or `diff` would have asked singly.
        if let Some(them) = together {
            for (name, slot) in them.set.iter() {
                if self.subscription.contains_of(&them.set, name) && !them.excepts(name) {
                    decide(change(name, Some(*slot)), self.known.get(name), true);
                }
            }
        }
        for name in &self.asked {
            if together.is_none_or(|them| !them.has(name)) {
                decide(change(name, target.set.slot(name)), self.known.get(name), true);
            }
        }
        diff.waits = diff.is_empty() && waiting > 0 && waiting == kept.len() && !self.owes_answer;
        if !diff.waits {
            let held = kept.iter().map(|(name, kept)| ((*name).clone(), kept.to_held()));
            diff.known = held.collect();
        }
        diff
    }

    /// Whether there is nothing to compare.
    pub(super) fn is_at(&self, target: &Base) -> bool {
        let asked = !self.asked.is_empty() || self.asked_together.is_some();
        self.base.is(target) && self.known.is_empty() && !asked && self.suspects.is_empty()
    }

    /// Takes note of a comparison whose response, if there is one, goes out with this number.
    pub(super) fn commit(&mut self, target: Base, diff: &mut Diff, nonce: Option<u64>) {
        self.found = None;
        let was = std::mem::replace(&mut self.base, target);
        self.known = std::mem::take(&mut diff.known);
        self.asked = std::mem::take(&mut diff.asked);
        self.asked_together = None;
        let Some(nonce) = nonce else { return };
        self.suspects.pop();
        for resource in &diff.resources {
            self.parked.remove(resource.name());
        }
        for name in &diff.removed {
            self.parked.remove(name);
        }
        let unchanged = |resource: &&Arc<Resource>| match was.entry(resource.name()) {
            Entry::Resource(before) => before.version() == resource.version(),
            _ => false,
        };
        let also = diff
            .resources
            .iter()
            .filter(unchanged)
            .map(|resource| resource.name().clone())
            .collect();
        self.in_flight = Some(Box::new(InFlight {
            nonce,
            was,
            also,
            count: diff.resources.len(),
        }));
        self.last_nonce = nonce;
        self.owes_answer = false;
    }

    /// Drops a group of suspects of which nothing is left to offer.
    pub(super) fn clear_suspects(&mut self) -> bool {
        self.found = None;
        self.suspects.pop().is_some()
    }

    /// Whether `nonce` is the one in flight; if so it no longer is. With `whole`, all of the kind was in it.
    pub(super) fn accept(&mut self, nonce: u64, whole: bool) -> bool {
        let accepted = self.in_flight.take_if(|sent| sent.nonce == nonce).is_some();
        if accepted && whole {
            self.parked.clear();
            self.known.retain(|_, held| matches!(held, Held::Resource(_)));
        }
        accepted
    }

    /// Takes note of a rejection of the response in flight. Returns the resources that are parked by it, or `None` if
    /// `nonce` is not in flight.
    ///
    /// Envoy applies clusters and listeners one by one and names those it refused (`<name>: <reason>`): if `singly`, the
    /// others count as accepted. Of the other kinds it stops at the first bad one, so that good ones may not be applied:
    /// they are offered again in smaller groups until the bad one is alone.
    pub(super) fn reject(
        &mut self,
        nonce: u64,
        message: &str,
        singly: bool,
    ) -> Option<Vec<(Arc<str>, Version)>> {
        let sent = self.in_flight.take_if(|sent| sent.nonce == nonce)?;
        let changed = sent.was.changes(&self.base).into_iter().map(|change| change.name);
        let changed = changed.filter(|name| !self.known.contains_key(*name) && !self.asked.contains(*name));
        let names: BTreeSet<_> = changed
            .chain(&sent.also)
            .filter(|name| self.subscription.contains(name))
            .collect();
        let mut offered: Vec<_> = names
            .into_iter()
            .filter_map(|name| match self.base.entry(name) {
                Entry::Resource(resource) => Some((name.clone(), resource.version())),
                _ => None,
            })
            .collect();
        let is_named = |name: &str| message.contains(&format!("{name}: "));
        if singly && offered.iter().any(|(name, _)| is_named(name)) {
            offered.retain(|(name, _)| is_named(name));
        }
        for (name, _) in &offered {
            self.known.insert(name.clone(), Held::Unknown);
        }
        if !singly && sent.count > 1 {
            let names: Vec<_> = offered.into_iter().map(|(name, _)| name).collect();
            let (first, second) = names.split_at(names.len() / 2);
            let groups = [second, first].into_iter().filter(|group| !group.is_empty());
            self.suspects.extend(groups.map(Into::into));
            return Some(Vec::new());
        }
        self.parked.extend(offered.iter().cloned());
        Some(offered)
    }

    /// Everything a state-of-the-world response of the kind holds: all of `base`, and what waits for its removal.
    pub(super) fn whole(&self) -> Vec<Arc<Resource>> {
        let entries = self
            .base
            .set
            .iter()
            .filter(|(name, _)| self.subscription.contains(name));
        let held = self
            .known
            .iter()
            .filter_map(|(name, held)| match (held, self.base.entry(name)) {
                (Held::Resource(resource), Entry::Absent | Entry::Pending) => Some(resource.clone()),
                _ => None,
            });
        entries
            .filter_map(|(_, slot)| self.base.snapshot.resource(*slot).cloned())
            .chain(held)
            .collect()
    }
}
