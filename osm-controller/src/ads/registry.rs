//! Which proxies are connected to this replica.
//!
//! Invariant: one entry a proxy. A newer stream of the same identity takes the entry over and the older one is told to
//! end; an entry is removed by the stream that owns it and by no other.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use osm_core::{identity::ProxyIdentity, resource::ResourceType, xds::KindStatus};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::admission::Bucket;

/// Streams one identity may open at once, and each second after that.
const STREAMS: (u32, u32) = (5, 1);
/// How long a proxy that has left is remembered for its rate.
const REMEMBER: Duration = Duration::from_secs(30);

/// How a stream stands.
#[derive(Clone, Debug)]
pub struct StreamStatus {
    /// Each kind that was opened.
    pub kinds: Vec<KindStatus>,
    /// Of each kind, how long the response in flight has been waiting for its answer.
    pub(super) waiting: [Option<Duration>; ResourceType::ALL.len()],
    /// Of each kind, what the proxy said when it last rejected something.
    pub(super) reasons: [Option<Arc<str>>; ResourceType::ALL.len()],
}

impl StreamStatus {
    /// How long the response of this kind that is in flight has been waiting for its answer.
    pub fn waiting(&self, kind: ResourceType) -> Option<Duration> {
        self.waiting[kind as usize]
    }

    /// What the proxy said about what it rejects of this kind; nothing when it rejects nothing now.
    pub fn reason(&self, kind: ResourceType) -> Option<&str> {
        let rejects = |status: &KindStatus| status.kind == kind && !status.rejected.is_empty();
        self.kinds
            .iter()
            .any(rejects)
            .then_some(self.reasons[kind as usize].as_deref())
            .flatten()
    }
}

/// One connected proxy.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who it is.
    pub proxy: ProxyIdentity,
    /// Where from.
    pub address: SocketAddr,
    /// Since when.
    pub since: Timestamp,
    /// `delta` or `state`.
    pub variant: &'static str,
    number: u64,
    replaced: CancellationToken,
    inspect: mpsc::Sender<oneshot::Sender<StreamStatus>>,
}

impl Connection {
    /// Asks the stream how it stands; `None` if it does not answer soon.
    pub async fn status(&self) -> Option<StreamStatus> {
        let (reply, answer) = oneshot::channel();
        self.inspect.try_send(reply).ok()?;
        tokio::time::timeout(Duration::from_secs(1), answer)
            .await
            .ok()?
            .ok()
    }
}

/// Why a stream is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The replica serves as many proxies as MeshConfig allows.
    Full,
    /// This identity opens streams too fast.
    TooFast,
}

#[derive(Debug, Default)]
struct Entries {
    connected: HashMap<Uuid, Connection>,
    rates: HashMap<Uuid, (Bucket, Instant)>,
    swept: Option<Instant>,
}

/// The connected proxies. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: Arc<Mutex<Entries>>,
    numbers: Arc<AtomicU64>,
}

/// A stream's place in the registry, given up on drop.
#[derive(Debug)]
pub(super) struct Place {
    registry: Registry,
    uuid: Uuid,
    number: u64,
    pub(super) replaced: CancellationToken,
    pub(super) inspect: mpsc::Receiver<oneshot::Sender<StreamStatus>>,
}

impl Registry {
    /// The connected proxies, by uuid.
    pub fn connections(&self) -> Vec<Connection> {
        let mut all: Vec<_> = self.entries.lock().connected.values().cloned().collect();
        all.sort_by_key(|connection| connection.proxy.uuid);
        all
    }

    /// One connected proxy.
    pub fn connection(&self, uuid: Uuid) -> Option<Connection> {
        self.entries.lock().connected.get(&uuid).cloned()
    }

    /// How many proxies are connected.
    pub fn len(&self) -> usize {
        self.entries.lock().connected.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the place of a proxy, in place of an older stream of its.
    pub(super) fn enter(
        &self,
        proxy: ProxyIdentity,
        address: SocketAddr,
        variant: &'static str,
        most: Option<usize>,
    ) -> Result<Place, Refusal> {
        let uuid = proxy.uuid;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let (inspect, inspected) = mpsc::channel(1);
        let now = Instant::now();
        let mut entries = self.entries.lock();
        entries.sweep(now);
        let rate = entries
            .rates
            .entry(uuid)
            .or_insert_with(|| (Bucket::new(STREAMS.0, STREAMS.1), now));
        rate.1 = now;
        if !rate.0.take() {
            return Err(Refusal::TooFast);
        }
        let count = entries.connected.len();
        if most.is_some_and(|most| count >= most) && !entries.connected.contains_key(&uuid) {
            return Err(Refusal::Full);
        }
        let connection = Connection {
            proxy,
            address,
            since: Timestamp::now(),
            variant,
            number,
            replaced: replaced.clone(),
            inspect,
        };
        if let Some(older) = entries.connected.insert(uuid, connection) {
            older.replaced.cancel();
        }
        drop(entries);
        Ok(Place {
            registry: self.clone(),
            uuid,
            number,
            replaced,
            inspect: inspected,
        })
    }
}

impl Entries {
    /// Forgets the rates of those who have long been quiet. Only proxies whose pod exists get this far, so there are
    /// never many more than that.
    fn sweep(&mut self, now: Instant) {
        if self
            .swept
            .is_none_or(|swept| now.duration_since(swept) > REMEMBER)
        {
            self.swept = Some(now);
            self.rates
                .retain(|_, (_, last)| now.duration_since(*last) < REMEMBER);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.registry.entries.lock();
        if entries
            .connected
            .get(&self.uuid)
            .is_some_and(|connection| connection.number == self.number)
        {
            entries.connected.remove(&self.uuid);
        }
    }
}

#[cfg(test)]
mod tests {
    use osm_core::identity::ServiceIdentity;

    use super::*;

    fn enter(registry: &Registry, uuid: u128, most: Option<usize>) -> Result<Place, Refusal> {
        let proxy = ProxyIdentity {
            uuid: Uuid::from_u128(uuid),
            service: ServiceIdentity::new("ns", "sa"),
        };
        registry.enter(proxy, ([127, 0, 0, 1], 1).into(), "delta", most)
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_stream_of_a_proxy_wins_and_is_counted_once() {
        let registry = Registry::default();
        let first = enter(&registry, 1, Some(1)).unwrap();
        let second = enter(&registry, 1, Some(1)).unwrap();
        assert!(first.replaced.is_cancelled() && !second.replaced.is_cancelled());
        assert_eq!(registry.len(), 1);
        drop(first);
        assert_eq!(
            registry.len(),
            1,
            "the older stream does not take the newer one's place away"
        );
        assert_eq!(enter(&registry, 2, Some(1)).unwrap_err(), Refusal::Full);
        drop(second);
        assert!(registry.is_empty());
        assert!(enter(&registry, 2, Some(1)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_reconnects_in_a_loop_is_slowed_down() {
        let registry = Registry::default();
        let results: Vec<_> = (0..10).map(|_| enter(&registry, 1, None).map(drop)).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
        assert!(enter(&registry, 2, None).is_ok(), "others are not concerned");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(enter(&registry, 1, None).is_ok());
        tokio::time::advance(Duration::from_secs(60)).await;
        drop(enter(&registry, 3, None));
        assert_eq!(registry.entries.lock().rates.len(), 1);
    }
}
