//! Where a watch reads from: whole objects, or their metadata only.

use std::fmt;

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Client, Resource,
    api::{ListParams, ObjectList, WatchParams},
    core::{NamespaceResourceScope, PartialObjectMeta, WatchEvent},
};
use serde::de::DeserializeOwned;

use super::guarded::Guarded;

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
pub struct Full<K>(Api<Guarded<K>>);

impl<K: Resource<DynamicType = ()>> Full<K> {
    pub(super) fn all(client: Client) -> Self {
        Self(Api::all(client))
    }

    pub(super) fn namespaced(client: Client, namespace: &str) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        Self(Api::namespaced(client, namespace))
    }
}

impl<K> Source for Full<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    type Object = K;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Guarded<K>>> {
        self.0.list(params).await
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<Stream<K>> {
        Ok(self.0.watch(params, version).await?.boxed())
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
        let guard = |event| match event {
            WatchEvent::Added(object) => WatchEvent::Added(Guarded::good(object)),
            WatchEvent::Modified(object) => WatchEvent::Modified(Guarded::good(object)),
            WatchEvent::Deleted(object) => WatchEvent::Deleted(Guarded::good(object)),
            WatchEvent::Bookmark(bookmark) => WatchEvent::Bookmark(bookmark),
            WatchEvent::Error(status) => WatchEvent::Error(status),
        };
        Ok(stream.map(move |event| event.map(guard)).boxed())
    }
}
