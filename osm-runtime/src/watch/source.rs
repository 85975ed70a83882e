//! Where a watch reads from: whole objects in JSON, or their metadata only. Built-in kinds can be read in
//! [`protobuf`](super::protobuf) too, which costs less.

use std::{fmt, marker::PhantomData};

use futures::{AsyncBufRead, AsyncBufReadExt, StreamExt, stream, stream::BoxStream};
use http::Request;
use kube::{
    Api, Client, Error, Resource,
    api::{ListParams, ObjectList, WatchParams},
    core::{NamespaceResourceScope, PartialObjectMeta, Request as Requests, WatchEvent},
};
use serde::de::DeserializeOwned;

use super::guarded::{Guarded, decode_event, decode_page, good_event};

/// Longest event that is read. The API server's objects have 1.5 MiB at most, and JSON of them little more.
pub(super) const MAX_EVENT: usize = 16 * 1024 * 1024;

/// Changes as they arrive.
pub(super) type Stream<K> = BoxStream<'static, kube::Result<WatchEvent<Guarded<K>>>>;

/// The two questions a watch asks.
pub trait Source: Send + Sync {
    /// What it reads.
    type Object: Clone + Send + 'static;

    /// One page of a list.
    fn list(
        &self,
        params: &ListParams,
    ) -> impl Future<Output = kube::Result<ObjectList<Guarded<Self::Object>>>> + Send;

    /// A watch from `version` on.
    fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> impl Future<Output = kube::Result<Stream<Self::Object>>> + Send;
}

/// Whole objects.
pub struct Full<K> {
    client: Client,
    requests: Requests,
    object: PhantomData<fn() -> K>,
}

impl<K: Resource<DynamicType = ()>> Full<K> {
    pub(super) fn all(client: Client) -> Self {
        Self {
            client,
            requests: Requests::new(K::url_path(&(), None)),
            object: PhantomData,
        }
    }

    pub(super) fn namespaced(client: Client, namespace: &str) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        Self {
            client,
            requests: Requests::new(K::url_path(&(), Some(namespace))),
            object: PhantomData,
        }
    }
}

pub(super) fn built(
    request: Result<Request<Vec<u8>>, kube::core::request::Error>,
) -> kube::Result<Request<Vec<u8>>> {
    request.map_err(Error::BuildRequest)
}

impl<K> Source for Full<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    type Object = K;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Guarded<K>>> {
        let text = self
            .client
            .request_text(built(self.requests.list(params))?)
            .await?;
        decode_page(&text)
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<Stream<K>> {
        let lines = self
            .client
            .request_stream(built(self.requests.watch(params, version))?)
            .await?;
        let lines = Box::pin(lines);
        let events = stream::unfold((lines, Vec::new()), async |(mut lines, mut line)| {
            let event = match read_line(&mut lines, &mut line).await {
                Ok(true) => decode_event(&line),
                // The end, or the middle of an event: either way the rest comes with the next watch.
                Ok(false) => return None,
                Err(error) => Err(Error::ReadEvents(error)),
            };
            Some((event, (lines, line)))
        });
        Ok(events.boxed())
    }
}

/// Reads a whole line into `line`; `false` when there is none any more.
async fn read_line(lines: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    line.shrink_to(64 * 1024);
    loop {
        let available = lines.fill_buf().await?;
        if available.is_empty() {
            return Ok(false);
        }
        let end = memchr::memchr(b'\n', available);
        let taken = end.map_or(available.len(), |end| end + 1);
        if line.len() + taken > MAX_EVENT {
            return Err(std::io::Error::other("an event is longer than any object may be"));
        }
        line.extend_from_slice(&available[..taken]);
        lines.consume_unpin(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Metadata only. It is the API server's own, hence never malformed.
pub struct Metadata<K>(Api<K>);

impl<K: Resource<DynamicType = ()>> Metadata<K> {
    pub(super) fn all(client: Client) -> Self {
        Self(Api::all(client))
    }
}

impl<K> Source for Metadata<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    type Object = PartialObjectMeta<K>;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Guarded<Self::Object>>> {
        let page = self.0.list_metadata(params).await?;
        let items = page.items.into_iter().map(Guarded::good).collect();
        Ok(ObjectList {
            types: page.types,
            metadata: page.metadata,
            items,
        })
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<Stream<Self::Object>> {
        let stream = self.0.watch_metadata(params, version).await?;
        Ok(stream.map(|event| event.map(good_event)).boxed())
    }
}
