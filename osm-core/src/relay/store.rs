//! The last good configuration: an index in memory, the bodies in a journal that somebody else writes.
//!
//! Invariants: the index is what reading the journal anew would give; nothing enters it beyond [`Limits`].

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::journal::{HEADER, Record, body_offset};
use crate::resource::{ResourceType, Version};

/// What may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Resources.
    pub resources: usize,
    /// Bytes of their records. The journal is at most half as long again, plus 256 KiB, and while it is compacted
    /// there are two of it: the volume must have room for two and a half times this.
    pub bytes: u64,
}

impl Default for Limits {
    /// 50,000 resources of 16 MiB in all: some 3,000 upstream services.
    fn default() -> Self {
        Self {
            resources: 50_000,
            bytes: 16 << 20,
        }
    }
}

/// Bytes the journal may waste before it is worth compacting.
const SLACK: u64 = 256 << 10;

/// A part of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u32,
}

/// Something to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The proxy accepted this: it replaces what was kept under the name.
    Keep {
        /// Its kind.
        kind: ResourceType,
        /// Its name.
        name: Arc<str>,
        /// Its version, as `tag` makes it.
        version: Version,
        /// The encoded `discovery.v3.Resource`.
        body: Bytes,
    },
    /// The proxy has it no longer.
    Drop {
        /// Its kind.
        kind: ResourceType,
        /// Its name.
        name: Arc<str>,
    },
    /// What is kept is a whole configuration.
    Complete,
}

/// The configuration is too large to be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the configuration has {resources} resources of {bytes} bytes; {limit_resources} of {limit_bytes} can be kept"
)]
pub struct TooMuch {
    resources: usize,
    bytes: u64,
    limit_resources: usize,
    limit_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    version: Version,
    record: Place,
}

/// What is kept.
#[derive(Clone, Debug)]
pub struct Store {
    limits: Limits,
    kinds: [BTreeMap<Arc<str>, Kept>; ResourceType::ALL.len()],
    complete: bool,
    /// Length of the journal.
    end: u64,
    /// Bytes of records that count.
    used: u64,
}

/// How a journal is replaced by one without waste: `head`, then these parts of the old one.
#[derive(Debug)]
pub struct Compaction {
    /// What the new journal begins with.
    pub head: Vec<u8>,
    /// What is copied after it, in this order.
    pub copies: Vec<Place>,
    /// What to go on with once the new journal is in place.
    pub store: Store,
}

impl Store {
    /// Nothing, and the journal's first bytes, which are to be written first.
    pub fn new(limits: Limits) -> (Self, &'static [u8]) {
        let store = Self {
            limits,
            kinds: Default::default(),
            complete: false,
            end: HEADER.len() as u64,
            used: 0,
        };
        (store, HEADER)
    }

    /// Reads a journal. It must be cut to [`Store::end`] before more is appended: what follows was not written whole.
    ///
    /// `None` if it is not a journal, or more than may be kept.
    pub fn read(limits: Limits, journal: &[u8]) -> Option<Self> {
        let mut rest = journal.strip_prefix(HEADER)?;
        let (mut store, _) = Self::new(limits);
        while let Some((record, length)) = Record::read(rest) {
            let place = Place {
                offset: store.end,
                length,
            };
            match record {
                Record::Keep {
                    kind, name, version, ..
                } => store.keep(kind, name.into(), version, place),
                Record::Drop { kind, name } => store.forget(kind, name),
                Record::Complete => store.complete = true,
            }
            store.end += u64::from(length);
            rest = rest.get(length as usize..)?;
        }
        store.excess().is_none().then_some(store)
    }

    /// Length of the journal: where the next bytes are appended.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many resources are kept.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(BTreeMap::len).sum()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> u64 {
        self.used
    }

    /// Whether it once was a whole configuration, and may be served.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The version that is kept.
    pub fn version(&self, kind: ResourceType, name: &str) -> Option<Version> {
        self.kinds[kind as usize].get(name).map(|kept| kept.version)
    }

    /// Where the encoded resource is.
    pub fn body(&self, kind: ResourceType, name: &str) -> Option<Place> {
        let (name, kept) = self.kinds[kind as usize].get_key_value(name)?;
        let before = body_offset(name);
        Some(Place {
            offset: kept.record.offset + u64::from(before),
            length: kept.record.length.checked_sub(before)?,
        })
    }

    /// The names that are kept, in order.
    pub fn names(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        self.kinds[kind as usize].keys()
    }

    /// Takes changes in. Returns the bytes to append to the journal; if that fails, the store is no longer true.
    ///
    /// # Errors
    /// [`TooMuch`], after which the store is no longer true: what the proxy has is more than may be kept.
    pub fn record(&mut self, changes: &[Change]) -> Result<Vec<u8>, TooMuch> {
        let mut bytes = Vec::new();
        for change in changes {
            let record = match change {
                Change::Keep {
                    kind,
                    name,
                    version,
                    body,
                } => Record::Keep {
                    kind: *kind,
                    name,
                    version: *version,
                    body,
                },
                Change::Drop { kind, name } => Record::Drop { kind: *kind, name },
                Change::Complete => Record::Complete,
            };
            let length = record.write(&mut bytes).ok_or_else(|| self.too_much())?;
            let place = Place {
                offset: self.end,
                length,
            };
            match change {
                Change::Keep {
                    kind, name, version, ..
                } => self.keep(*kind, name.clone(), *version, place),
                Change::Drop { kind, name } => self.forget(*kind, name),
                Change::Complete => self.complete = true,
            }
            self.end += u64::from(length);
        }
        self.excess().map_or(Ok(bytes), Err)
    }

    /// What is to be done when the journal has grown by more than half of what it holds.
    pub fn compaction(&self) -> Option<Compaction> {
        if self.end - self.used <= self.used / 2 + SLACK {
            return None;
        }
        let (mut store, header) = Self::new(self.limits);
        let mut head = header.to_vec();
        if self.complete {
            let length = Record::Complete.write(&mut head)?;
            store.complete = true;
            store.end += u64::from(length);
        }
        let mut copies = Vec::with_capacity(self.len());
        for kind in ResourceType::ALL {
            for (name, kept) in &self.kinds[kind as usize] {
                let place = Place {
                    offset: store.end,
                    length: kept.record.length,
                };
                copies.push(kept.record);
                store.keep(kind, name.clone(), kept.version, place);
                store.end += u64::from(place.length);
            }
        }
        Some(Compaction { head, copies, store })
    }

    fn keep(&mut self, kind: ResourceType, name: Arc<str>, version: Version, record: Place) {
        self.used += u64::from(record.length);
        let kept = Kept { version, record };
        if let Some(before) = self.kinds[kind as usize].insert(name, kept) {
            self.used -= u64::from(before.record.length);
        }
    }

    fn forget(&mut self, kind: ResourceType, name: &str) {
        if let Some(before) = self.kinds[kind as usize].remove(name) {
            self.used -= u64::from(before.record.length);
        }
    }

    fn excess(&self) -> Option<TooMuch> {
        let fits = self.len() <= self.limits.resources && self.used <= self.limits.bytes;
        (!fits).then(|| self.too_much())
    }

    fn too_much(&self) -> TooMuch {
        TooMuch {
            resources: self.len(),
            bytes: self.used,
            limit_resources: self.limits.resources,
            limit_bytes: self.limits.bytes,
        }
    }
}
