//! Watching objects of one kind: everything first, then each change, for as long as the process lives.
//!
//! Owns the conversation with the API server: list (streamed where the server can, else in pages), watch from there,
//! again from the last version seen when the connection breaks, all over when that version is too old. Invariants:
//!
//! - A consumer sees one [`Event::Reset`] with the whole collection, converted object by object as it arrives, then
//!   changes in the API server's order. After a gap, another `Reset`.
//! - An object that cannot be decoded is reported and harms nothing else (law 6).
//! - A watch that says nothing, not even a bookmark (the API server sends one about every minute), is taken for dead:
//!   watched again from the last version, and if still silent, listed again.
//! - The queue to the consumer is bounded: a slow consumer slows the watch, nothing else.

mod guarded;
mod source;
#[cfg(test)]
mod tests;

use std::{fmt, marker::PhantomData, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Client, Resource,
    api::{ListParams, WatchParams},
    core::{NamespaceResourceScope, PartialObjectMeta, Status, WatchEvent},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use guarded::Guarded;
use source::{Full, Metadata, Source};

use crate::{
    backoff::{Backoff, jittered},
    client::describe,
    health::Condition,
    metrics::Metrics,
};

/// Which object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// An object that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Which one.
    pub key: ObjectKey,
    /// What is wrong with it.
    pub error: String,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// This is everything there is. What a consumer knows beyond it is gone, except what is `malformed`: of that, the
    /// last good state stays.
    Reset {
        /// Every object that could be decoded.
        objects: Vec<T>,
        /// Every one that could not.
        malformed: Vec<Malformed>,
    },
    /// An object is new or changed.
    Upsert(T),
    /// An object is gone.
    Remove(ObjectKey),
    /// An object changed into something that cannot be decoded; its last good state stays.
    Malformed(Malformed),
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Silence after which a watch is taken for dead.
    silence: Duration,
    /// Longest wait for a page of a list, or between the objects of a streamed one.
    list: Duration,
    /// First and longest wait after a failure.
    backoff: (Duration, Duration),
}

impl Default for Times {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(150),
            list: Duration::from_secs(60),
            backoff: (Duration::from_millis(500), Duration::from_secs(30)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Happened {
    kind: &'static str,
    what: &'static str,
}

/// Metrics of the watches of a process.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    events: Family<Happened, Counter>,
    restarts: Family<Happened, Counter>,
    proof_of_life: Family<Kind, Gauge>,
}

impl WatchMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register(
                "osm_watch_events",
                "Objects and changes received",
                new.events.clone(),
            );
            registry.register(
                "osm_watch_restarts",
                "Watches begun again, by reason",
                new.restarts.clone(),
            );
            let help = "Unix time of the last sign of life of a watch: an object, a change or a bookmark";
            registry.register("osm_watch_proof_of_life_seconds", help, new.proof_of_life.clone());
        });
        new
    }
}

/// A watch to be run: what is watched.
pub struct Watch<K, S = Full<K>> {
    source: S,
    kind: &'static str,
    labels: Option<String>,
    fields: Option<String>,
    optional: bool,
    times: Times,
    object: PhantomData<fn() -> K>,
}

impl<K, S> fmt::Debug for Watch<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({})", self.kind)
    }
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    /// All objects of the kind in the cluster. `kind` names it in metrics and logs (`pods`).
    pub fn all(client: Client, kind: &'static str) -> Self {
        Self::over(Full::all(client), kind)
    }

    /// All objects of the kind in a namespace.
    pub fn namespaced(client: Client, kind: &'static str, namespace: &str) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        Self::over(Full::namespaced(client, namespace), kind)
    }
}

impl<K> Watch<PartialObjectMeta<K>, Metadata<K>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    /// The metadata of all objects of the kind in the cluster, nothing else.
    pub fn metadata(client: Client, kind: &'static str) -> Self {
        Self::over(Metadata::all(client), kind)
    }
}

impl<K, S> Watch<K, S>
where
    K: Resource<DynamicType = ()> + Clone + Send + 'static,
    S: Source<Object = K>,
{
    fn over(source: S, kind: &'static str) -> Self {
        let times = Times::default();
        Self {
            source,
            kind,
            labels: None,
            fields: None,
            optional: false,
            times,
            object: PhantomData,
        }
    }

    /// Only objects with these labels (a label selector).
    #[must_use]
    pub fn labels(mut self, selector: &str) -> Self {
        self.labels = Some(selector.to_owned());
        self
    }

    /// Only objects with these fields (a field selector).
    #[must_use]
    pub fn fields(mut self, selector: &str) -> Self {
        self.fields = Some(selector.to_owned());
        self
    }

    /// The kind may be unknown to the cluster (a CRD that is not installed): then there are no objects of it. It is
    /// looked for again from time to time.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Watches until `stop`, or until nobody reads `sink` any more.
    ///
    /// `convert` makes of each object what the consumer keeps, as soon as it arrives, so that big objects are never
    /// held all at once; `wrap` makes the consumer's own event, so that several watches can share one queue.
    /// `synced` becomes ready with the first [`Event::Reset`], and stays so when the API server is gone later:
    /// what is known is then still served.
    pub async fn run<T, E>(
        self,
        convert: impl Fn(K) -> T + Send,
        wrap: impl Fn(Event<T>) -> E + Send,
        sink: mpsc::Sender<E>,
        synced: Condition,
        metrics: WatchMetrics,
        stop: CancellationToken,
    ) where
        T: Send,
        E: Send,
    {
        let mut run = Run {
            watch: self,
            convert,
            wrap,
            sink,
            synced,
            metrics,
            paged: false,
            ready: false,
        };
        tokio::select! { () = run.forever() => {}, () = stop.cancelled() => {} }
    }
}

/// Why a phase ended.
enum End {
    /// The consumer is gone.
    Closed,
    /// Watch again from this version.
    Resume(&'static str),
    /// List again.
    Relist(&'static str),
    /// As the first, after a wait.
    Failed(String),
    /// List again, after a wait.
    FailedRelist(String),
    /// The server cannot stream lists.
    Unsupported,
    /// The server does not know the kind.
    Unknown,
}

struct Run<K, S, C, W, E> {
    watch: Watch<K, S>,
    convert: C,
    wrap: W,
    sink: mpsc::Sender<E>,
    synced: Condition,
    metrics: WatchMetrics,
    paged: bool,
    ready: bool,
}

type Result<T> = std::result::Result<T, End>;

impl<K, S, T, C, W, E> Run<K, S, C, W, E>
where
    K: Resource<DynamicType = ()> + Clone + Send + 'static,
    S: Source<Object = K>,
    C: Fn(K) -> T + Send,
    W: Fn(Event<T>) -> E + Send,
    T: Send,
    E: Send,
{
    async fn forever(&mut self) {
        let (first, cap) = self.watch.times.backoff;
        let mut backoff = Backoff::new(first, cap);
        let mut version: Option<String> = None;
        let (mut silent, mut unknown) = (false, false);
        loop {
            let progress = self.progress();
            let end = match version.as_mut() {
                None => match self.list().await {
                    Ok(listed) => {
                        version = Some(listed);
                        unknown = false;
                        backoff.reset();
                        continue;
                    }
                    Err(end) => end,
                },
                Some(version) => self.follow(version).await,
            };
            if self.progress() != progress {
                backoff.reset();
                silent = false;
            }
            match end {
                End::Closed => return,
                End::Unsupported => self.paged = true,
                End::Resume("silent") if silent => {
                    version = None;
                    self.restarted("silent_relist");
                }
                End::Resume(reason) => {
                    silent = reason == "silent";
                    self.restarted(reason);
                    // A server that ends every watch at once is not asked in a tight loop.
                    tokio::time::sleep(jittered(first / 5, 0.5)).await;
                }
                End::Relist(reason) => {
                    version = None;
                    self.restarted(reason);
                    tokio::time::sleep(jittered(first, 0.5)).await;
                }
                End::Unknown => {
                    version = None;
                    if self.watch.optional {
                        if !std::mem::replace(&mut unknown, true)
                            && self.reset(Vec::new(), Vec::new()).await.is_err()
                        {
                            return;
                        }
                    } else {
                        self.waiting("the cluster does not know this kind; is its CRD installed?");
                    }
                    tokio::time::sleep(jittered(cap, 0.3)).await;
                }
                End::Failed(error) => {
                    self.failed(&error);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                End::FailedRelist(error) => {
                    version = None;
                    self.failed(&error);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Reads everything; the version it was read at.
    async fn list(&mut self) -> Result<String> {
        let (objects, malformed, version) = if self.paged {
            self.list_pages().await?
        } else {
            self.list_stream().await?
        };
        self.reset(objects, malformed).await?;
        Ok(version)
    }

    async fn list_stream(&self) -> Result<(Vec<T>, Vec<Malformed>, String)> {
        let params = WatchParams {
            send_initial_events: true,
            ..self.params()
        };
        let opened = timeout(self.watch.times.list, self.watch.source.watch(&params, "")).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(list_failure(&error, true)),
            Err(_) => return Err(End::FailedRelist("listing took too long to begin".into())),
        };
        let (mut objects, mut malformed) = (Vec::new(), Vec::new());
        loop {
            let next = timeout(self.watch.times.list, stream.next()).await;
            match next {
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    self.take(object, &mut objects, &mut malformed);
                }
                // During the list nothing is deleted; should a server say so, the list is begun again.
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => return Err(End::Relist("deleted_while_listing")),
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    self.alive();
                    if bookmark
                        .metadata
                        .annotations
                        .contains_key("k8s.io/initial-events-end")
                    {
                        return Ok((objects, malformed, bookmark.metadata.resource_version));
                    }
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    return Err(list_failure(&kube::Error::Api(status), true));
                }
                Ok(Some(Err(error))) => return Err(End::FailedRelist(describe(&error))),
                Ok(None) => return Err(End::FailedRelist("the list ended half-way".into())),
                Err(_) => return Err(End::FailedRelist("the list stopped half-way".into())),
            }
        }
    }

    async fn list_pages(&self) -> Result<(Vec<T>, Vec<Malformed>, String)> {
        let (mut objects, mut malformed) = (Vec::new(), Vec::new());
        let mut params = ListParams {
            label_selector: self.watch.labels.clone(),
            field_selector: self.watch.fields.clone(),
            limit: Some(500),
            ..ListParams::default()
        };
        loop {
            let page = match timeout(self.watch.times.list, self.watch.source.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(list_failure(&error, false)),
                Err(_) => return Err(End::FailedRelist("a page of the list took too long".into())),
            };
            for object in page.items {
                self.take(object, &mut objects, &mut malformed);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let version = page
                        .metadata
                        .resource_version
                        .filter(|version| !version.is_empty());
                    let missing = || End::FailedRelist("the list has no version".into());
                    return Ok((objects, malformed, version.ok_or_else(missing)?));
                }
            }
        }
    }

    /// Watches from `version` on, moving it along, until something ends it.
    async fn follow(&self, version: &mut String) -> End {
        let opened = timeout(
            self.watch.times.list,
            self.watch.source.watch(&self.params(), version),
        )
        .await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return watch_failure(&error),
            Err(_) => return End::Failed("a watch took too long to begin".into()),
        };
        loop {
            let next = match timeout(self.watch.times.silence, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return watch_failure(&error),
                Ok(None) => return End::Resume("ended"),
                Err(_) => return End::Resume("silent"),
            };
            self.alive();
            let (object, removed) = match next {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    *version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => return watch_failure(&kube::Error::Api(status)),
            };
            if let Some(seen) = object.version() {
                seen.clone_into(version);
            }
            let (event, what) = match (removed, object) {
                (true, object) => (Event::Remove(object.key()), "remove"),
                (
                    false,
                    Guarded {
                        object: Ok(object), ..
                    },
                ) => (Event::Upsert((self.convert)(object)), "upsert"),
                (false, object) => (Event::Malformed(object.malformed()), "malformed"),
            };
            self.count(what);
            if self.sink.send((self.wrap)(event)).await.is_err() {
                return End::Closed;
            }
        }
    }

    fn take(&self, object: Guarded<K>, objects: &mut Vec<T>, malformed: &mut Vec<Malformed>) {
        self.alive();
        match object {
            Guarded {
                object: Ok(object), ..
            } => {
                self.count("list");
                objects.push((self.convert)(object));
            }
            object => {
                self.count("malformed");
                malformed.push(object.malformed());
            }
        }
    }

    async fn reset(&mut self, objects: Vec<T>, malformed: Vec<Malformed>) -> Result<()> {
        let count = objects.len();
        let event = (self.wrap)(Event::Reset { objects, malformed });
        self.sink.send(event).await.map_err(|_| End::Closed)?;
        self.count("reset");
        self.ready = true;
        self.synced.set_ready();
        tracing::info!(kind = self.watch.kind, count, "listed");
        Ok(())
    }

    fn params(&self) -> WatchParams {
        // The API server ends a watch after this time; different times keep them from all beginning again at once.
        let seconds = jittered(Duration::from_secs(270), 0.07).as_secs();
        WatchParams {
            label_selector: self.watch.labels.clone(),
            field_selector: self.watch.fields.clone(),
            timeout: u32::try_from(seconds).ok(),
            bookmarks: true,
            send_initial_events: false,
        }
    }

    fn count(&self, what: &'static str) {
        self.metrics
            .events
            .get_or_create(&Happened {
                kind: self.watch.kind,
                what,
            })
            .inc();
    }

    fn restarted(&self, reason: &'static str) {
        self.metrics
            .restarts
            .get_or_create(&Happened {
                kind: self.watch.kind,
                what: reason,
            })
            .inc();
        tracing::debug!(kind = self.watch.kind, reason, "watching again");
    }

    fn alive(&self) {
        let kind = Kind {
            kind: self.watch.kind,
        };
        self.metrics
            .proof_of_life
            .get_or_create(&kind)
            .set(Timestamp::now().as_second());
    }

    /// Something that changes whenever the server gave a sign of life.
    fn progress(&self) -> (u64, i64) {
        let kind = self.watch.kind;
        let changes = ["upsert", "remove", "malformed", "list", "reset"];
        let count = |what| self.metrics.events.get_or_create(&Happened { kind, what }).get();
        (
            changes.into_iter().map(count).sum(),
            self.metrics.proof_of_life.get_or_create(&Kind { kind }).get(),
        )
    }

    fn failed(&self, error: &str) {
        self.restarted("error");
        tracing::warn!(kind = self.watch.kind, error, "watching failed; trying again");
        self.waiting(error);
    }

    fn waiting(&self, reason: &str) {
        if !self.ready {
            self.synced
                .set_not_ready(format!("{} cannot be listed: {reason}", self.watch.kind));
        }
    }
}

fn status_of(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

fn list_failure(error: &kube::Error, streamed: bool) -> End {
    match status_of(error).map(|status| status.code) {
        Some(404) => End::Unknown,
        // A server without streamed lists refuses `sendInitialEvents` as invalid.
        Some(400 | 422) if streamed => End::Unsupported,
        _ => End::FailedRelist(describe(error)),
    }
}

fn watch_failure(error: &kube::Error) -> End {
    match status_of(error).map(|status| status.code) {
        Some(410) => End::Relist("expired"),
        Some(404) => End::Unknown,
        // A version this server does not have yet, or refuses: another server, or a restored store.
        Some(400 | 422 | 504) => End::FailedRelist(describe(error)),
        _ => End::Failed(describe(error)),
    }
}
