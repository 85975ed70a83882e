//! The etcd beneath the API server: stored objects read, and put there again without the API server's work.
//!
//! Owns three calls of etcd's KV service (`etcdserverpb`, <https://etcd.io/docs/v3.6/dev-guide/api_reference_v3/>). The API
//! server sees what is written here as it sees its own writes, and tells its watchers. Invariant: bytes are those that the
//! API server stored, but for texts replaced by others of the same length, which protobuf's length prefixes allow.

use anyhow::{Context as _, Result};
use http::{Uri, uri::PathAndQuery};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message;
use tonic::{IntoRequest as _, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

/// The folder of all keys (the API server's `--etcd-prefix`).
const PREFIX: &str = "/registry";

/// A client of etcd.
#[derive(Clone)]
pub(crate) struct Etcd {
    calls: Grpc<Client<HttpConnector, Body>>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pairs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRangeResponse {
    #[prost(int64, tag = "2")]
    deleted: i64,
}

/// Of an answer nothing is read.
#[derive(Clone, PartialEq, Message)]
struct Done {}

impl Etcd {
    /// A client of the etcd at `origin`, which listens without TLS.
    pub(crate) fn new(origin: Uri) -> Self {
        let mut connector = HttpConnector::new();
        // Each call is small, and waited for.
        connector.set_nodelay(true);
        let channel = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build(connector);
        Self {
            calls: Grpc::with_origin(channel, origin),
        }
    }

    /// What is stored under a key, such as `pods/load-0/pod-1`.
    ///
    /// # Errors
    /// When there is nothing, or no answer.
    pub(crate) async fn get(&self, key: &str) -> Result<Vec<u8>> {
        let request = RangeRequest { key: path(key) };
        let response: RangeResponse = self.call("/etcdserverpb.KV/Range", request).await?;
        let found = response.pairs.into_iter().next();
        Ok(found.with_context(|| format!("etcd has no {key}"))?.value)
    }

    /// Stores an object.
    pub(crate) async fn put(&self, key: &str, value: Vec<u8>) -> Result<()> {
        let request = PutRequest {
            key: path(key),
            value,
        };
        let Done {} = self.call("/etcdserverpb.KV/Put", request).await?;
        Ok(())
    }

    /// Removes an object.
    ///
    /// # Errors
    /// When there is none, or no answer.
    pub(crate) async fn delete(&self, key: &str) -> Result<()> {
        let request = DeleteRangeRequest { key: path(key) };
        let response: DeleteRangeResponse = self.call("/etcdserverpb.KV/DeleteRange", request).await?;
        anyhow::ensure!(response.deleted == 1, "etcd has no {key}");
        Ok(())
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut calls = self.calls.clone();
        calls.ready().await.context("etcd")?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = calls
            .unary(request.into_request(), PathAndQuery::from_static(method), codec)
            .await
            .with_context(|| format!("etcd's {method}"))?;
        Ok(answer.into_inner())
    }
}

fn path(key: &str) -> Vec<u8> {
    format!("{PREFIX}/{key}").into_bytes()
}

/// Puts `new` in every place of `old`, which is as long.
pub(crate) fn overwrite(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut at = 0;
    while let Some(window) = bytes.get_mut(at..at + old.len()) {
        if window == old {
            window.copy_from_slice(new);
            at += old.len();
        } else {
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_overwritten() {
        let mut bytes = b"-ab-abab-a".to_vec();
        overwrite(&mut bytes, b"ab", b"xy");
        assert_eq!(bytes, b"-xy-xyxy-a");
    }
}
