//! The conversation of one watch with the API server: list, follow, and what to do when either breaks.

use std::time::Duration;

use futures::StreamExt;
use kube::{
    api::{ListParams, WatchParams},
    core::{Status, WatchEvent},
};
use osm_core::facts::lean::Identified;
use tokio::{sync::mpsc, time::timeout};

use super::{Event, Malformed, Watch, guarded::Guarded, metrics::Running, source::Source};
use crate::{
    backoff::{Backoff, jittered},
    client::describe,
    health::Condition,
};

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

pub(super) struct Run<K, S, C, W, E> {
    pub(super) watch: Watch<K, S>,
    pub(super) running: Running,
    pub(super) convert: C,
    pub(super) wrap: W,
    pub(super) sink: mpsc::Sender<E>,
    pub(super) synced: Condition,
    /// The server does not stream lists.
    pub(super) paged: bool,
    /// A [`Event::Reset`] was delivered.
    pub(super) ready: bool,
}

type Result<T> = std::result::Result<T, End>;

impl<K, S, T, C, W, E> Run<K, S, C, W, E>
where
    K: Identified + Clone + Send + 'static,
    S: Source<Object = K>,
    C: Fn(K) -> T + Send,
    W: Fn(Event<T>) -> E + Send,
    T: Send,
    E: Send,
{
    pub(super) async fn forever(&mut self) {
        let (first, cap) = self.watch.times.backoff;
        let mut backoff = Backoff::new(first, cap);
        let mut version: Option<String> = None;
        let (mut silent, mut unknown) = (false, false);
        loop {
            let progress = self.running.progress();
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
            if self.running.progress() != progress {
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
                    self.running.alive();
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
            self.running.alive();
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
            let (event, counter) = match (removed, object) {
                (true, object) => (Event::Remove(object.key()), &self.running.removals),
                (
                    false,
                    Guarded {
                        object: Ok(object), ..
                    },
                ) => (Event::Upsert((self.convert)(object)), &self.running.upserts),
                (false, object) => (Event::Malformed(object.malformed()), &self.running.malformed),
            };
            counter.inc();
            if self.sink.send((self.wrap)(event)).await.is_err() {
                return End::Closed;
            }
        }
    }

    fn take(&self, object: Guarded<K>, objects: &mut Vec<T>, malformed: &mut Vec<Malformed>) {
        self.running.alive();
        match object {
            Guarded {
                object: Ok(object), ..
            } => {
                self.running.listed.inc();
                objects.push((self.convert)(object));
            }
            object => {
                self.running.malformed.inc();
                malformed.push(object.malformed());
            }
        }
    }

    async fn reset(&mut self, objects: Vec<T>, malformed: Vec<Malformed>) -> Result<()> {
        let count = objects.len();
        let event = (self.wrap)(Event::Reset { objects, malformed });
        self.sink.send(event).await.map_err(|_| End::Closed)?;
        self.running.resets.inc();
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

    fn restarted(&self, reason: &'static str) {
        self.running.restarted(reason);
        tracing::debug!(kind = self.watch.kind, reason, "watching again");
    }

    fn failed(&self, error: &str) {
        self.restarted("error");
        tracing::warn!(kind = self.watch.kind, error, "watching failed; trying again");
        self.waiting(error);
    }

    fn waiting(&self, reason: &str) {
        #[cfg(feature = "sabotage")]
        if osm_core::sabotage::Fault::ImpatientReadiness.is_on() {
            self.synced.set_not_ready(reason.to_owned());
        }
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
