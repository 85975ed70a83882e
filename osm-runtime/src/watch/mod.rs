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
mod metrics;
mod protobuf;
mod run;
mod source;
#[cfg(test)]
mod tests;
mod thread;

use std::{fmt, marker::PhantomData, time::Duration};

use kube::{
    Client, Resource,
    core::{NamespaceResourceScope, PartialObjectMeta},
};
use osm_core::facts::lean::{Identified, Wire};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use metrics::WatchMetrics;
use protobuf::Protobuf;
use run::Run;
use source::{Full, Metadata, Source};
pub use thread::{ThreadError, WatchThread};

use crate::health::Condition;

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

impl<K: Wire> Watch<K, Protobuf<K>> {
    /// All objects of a built-in kind in the cluster, in protobuf, of which only what `K` declares is decoded.
    pub fn wire(client: Client, kind: &'static str) -> Self {
        Self::over(Protobuf::all(client), kind)
    }
}

impl<K, S> Watch<K, S>
where
    K: Identified + Clone + Send + 'static,
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
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one thing, and all callers are one line"
    )]
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
            running: metrics.running(self.kind),
            watch: self,
            convert,
            wrap,
            sink,
            synced,
            paged: false,
            ready: false,
        };
        tokio::select! { () = run.forever() => {}, () = stop.cancelled() => {} }
    }
}
