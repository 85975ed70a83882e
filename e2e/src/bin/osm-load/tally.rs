//! What fake Envoys count while they run, for whoever measures them from outside.
//!
//! Owns the counters only. They are plain atomics: counting must cost less than what is counted.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use osm_core::resource::ResourceType;
use serde::Serialize;

use crate::sidecar::Taken;

/// One fake Envoy.
#[derive(Debug, Default)]
struct Proxy {
    /// Microseconds from the tally's beginning to its last answer.
    answered: AtomicU64,
    /// Whether it has all it asked for, and a stream.
    synced: AtomicBool,
}

/// One kind of resource.
#[derive(Debug, Default)]
struct Kind {
    responses: AtomicU64,
    resources: AtomicU64,
    repeated: AtomicU64,
    removed: AtomicU64,
    bytes: AtomicU64,
}

/// All counters of a fleet.
#[derive(Debug)]
pub(crate) struct Tally {
    begun: Instant,
    proxies: Vec<Proxy>,
    kinds: [Kind; ResourceType::ALL.len()],
    streams: Vec<AtomicUsize>,
    synced: AtomicUsize,
    connects: AtomicU64,
    failures: AtomicU64,
    refusals: AtomicU64,
    rejections: AtomicU64,
    last: AtomicU64,
}

/// Counters of one kind at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct KindCount {
    /// Responses received.
    pub(crate) responses: u64,
    /// Resources in them.
    pub(crate) resources: u64,
    /// Resources the proxy had in this very version.
    pub(crate) repeated: u64,
    /// Resources taken away.
    pub(crate) removed: u64,
    /// Bytes of the responses.
    pub(crate) bytes: u64,
}

/// All counters at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Count {
    /// By kind, in the order of [`ResourceType::ALL`].
    pub(crate) kinds: [KindCount; ResourceType::ALL.len()],
    /// Streams opened.
    pub(crate) connects: u64,
    /// Connections and streams that failed or were cut.
    pub(crate) failures: u64,
    /// Streams the server refused: too many at once, not ready.
    pub(crate) refusals: u64,
    /// Responses rejected by the proxies.
    pub(crate) rejections: u64,
}

impl Count {
    /// All kinds together.
    pub(crate) fn all(&self) -> KindCount {
        self.kinds
            .iter()
            .fold(KindCount::default(), |sum, kind| KindCount {
                responses: sum.responses + kind.responses,
                resources: sum.resources + kind.resources,
                repeated: sum.repeated + kind.repeated,
                removed: sum.removed + kind.removed,
                bytes: sum.bytes + kind.bytes,
            })
    }

    /// What was counted since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut kinds = self.kinds;
        for (now, then) in kinds.iter_mut().zip(&earlier.kinds) {
            now.responses -= then.responses;
            now.resources -= then.resources;
            now.repeated -= then.repeated;
            now.removed -= then.removed;
            now.bytes -= then.bytes;
        }
        Self {
            kinds,
            connects: self.connects - earlier.connects,
            failures: self.failures - earlier.failures,
            refusals: self.refusals - earlier.refusals,
            rejections: self.rejections - earlier.rejections,
        }
    }
}

impl Tally {
    /// For so many proxies and servers.
    pub(crate) fn new(proxies: usize, servers: usize) -> Self {
        Self {
            begun: Instant::now(),
            proxies: (0..proxies).map(|_| Proxy::default()).collect(),
            kinds: Default::default(),
            streams: (0..servers).map(|_| AtomicUsize::new(0)).collect(),
            synced: AtomicUsize::new(0),
            connects: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            rejections: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    /// Microseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// When the last answer of any proxy was sent.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// How many proxies have a stream and all they asked for.
    pub(crate) fn synced(&self) -> usize {
        self.synced.load(Relaxed)
    }

    /// Open streams, by server.
    pub(crate) fn streams(&self) -> Vec<usize> {
        self.streams.iter().map(|streams| streams.load(Relaxed)).collect()
    }

    /// Proxies that answered since `moment`: which one, and when.
    pub(crate) fn answered_since(&self, moment: u64) -> Vec<(usize, u64)> {
        let answered = self.proxies.iter().map(|proxy| proxy.answered.load(Relaxed));
        answered.enumerate().filter(|(_, at)| *at >= moment).collect()
    }

    /// All counters now.
    pub(crate) fn count(&self) -> Count {
        let mut kinds = [KindCount::default(); ResourceType::ALL.len()];
        for (count, kind) in kinds.iter_mut().zip(&self.kinds) {
            *count = KindCount {
                responses: kind.responses.load(Relaxed),
                resources: kind.resources.load(Relaxed),
                repeated: kind.repeated.load(Relaxed),
                removed: kind.removed.load(Relaxed),
                bytes: kind.bytes.load(Relaxed),
            };
        }
        Count {
            kinds,
            connects: self.connects.load(Relaxed),
            failures: self.failures.load(Relaxed),
            refusals: self.refusals.load(Relaxed),
            rejections: self.rejections.load(Relaxed),
        }
    }

    pub(crate) fn opened(&self, server: usize) {
        self.connects.fetch_add(1, Relaxed);
        self.streams[server].fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self, proxy: usize, server: usize) {
        self.streams[server].fetch_sub(1, Relaxed);
        self.set_synced(proxy, false);
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refusals.fetch_add(1, Relaxed);
    }

    pub(crate) fn set_synced(&self, proxy: usize, synced: bool) {
        if self.proxies[proxy].synced.swap(synced, Relaxed) != synced {
            if synced {
                self.synced.fetch_add(1, Relaxed);
            } else {
                self.synced.fetch_sub(1, Relaxed);
            }
        }
    }

    pub(crate) fn received(&self, bytes: usize, taken: &Taken, accepted: bool) {
        let kind = &self.kinds[taken.kind];
        kind.responses.fetch_add(1, Relaxed);
        kind.resources.fetch_add(taken.resources as u64, Relaxed);
        kind.repeated.fetch_add(taken.repeated as u64, Relaxed);
        kind.removed.fetch_add(taken.removed as u64, Relaxed);
        kind.bytes.fetch_add(bytes as u64, Relaxed);
        if !accepted {
            self.rejections.fetch_add(1, Relaxed);
        }
    }

    /// Takes note that a proxy has just sent an answer.
    pub(crate) fn answered(&self, proxy: usize) {
        let now = self.now();
        self.proxies[proxy].answered.store(now, Relaxed);
        self.last.fetch_max(now, Relaxed);
    }
}
