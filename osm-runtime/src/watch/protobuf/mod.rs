//! Watches of built-in kinds in the protobuf of Kubernetes.
//!
//! Owns the two questions and what may come instead of an answer; how an answer is cut and decoded is its modules'. What
//! a lean type does not declare is skipped by its length, so that a write that concerns nobody costs next to nothing.
//! Must not be used for kinds of CRDs: of those there is JSON only. Invariants: an answer in another encoding (a proxy in
//! between) is an error, never read as protobuf; whatever is received is bounded; a refusal keeps its code, by which a
//! watch decides how to go on.

mod decode;
mod frames;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::{
    Client, Error,
    api::{ListParams, ObjectList, WatchParams},
    client::Body,
    core::{Request as Requests, Status},
};
use osm_core::facts::lean::Wire;

use super::{
    guarded::Guarded,
    source::{Source, Stream, built},
};
use decode::{decode_event, decode_page, decode_status};
use frames::Frames;

const LIST: HeaderValue = HeaderValue::from_static("application/vnd.kubernetes.protobuf");
const WATCH: HeaderValue = HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch");

/// Longest page that is read: it has 500 objects, of 1.5 MiB at most.
const MAX_PAGE: usize = 1024 * 1024 * 1024;
/// Longest refusal that is read.
const MAX_REFUSAL: usize = 64 * 1024;
/// Longest text of a refusal that is passed on, and of a header.
const MAX_TEXT: usize = 512;

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
enum WireError {
    /// Something in between has answered, or encoded the answer anew.
    #[error("the answer is {0:?}, not Kubernetes' protobuf")]
    ContentType(String),
    /// It does not begin as Kubernetes' protobuf does.
    #[error("what should be Kubernetes' protobuf is not")]
    Magic,
    /// It is inside, but as something else.
    #[error("what Kubernetes' protobuf should contain is encoded otherwise")]
    Encoding,
    /// Another kind than was asked for.
    #[error("an object is not of the kind {0}")]
    Kind(&'static str),
    /// An event of a type that there is not.
    #[error("an event is of unknown type")]
    Event,
    /// An object without a name cannot be attributed.
    #[error("an object that cannot be decoded has no name")]
    Nameless,
    /// A watch could not go on from there.
    #[error("a bookmark has no version")]
    Unversioned,
    /// More than any object may have.
    #[error("an event is longer than any object may be")]
    TooLong,
    /// Not protobuf, or of other types.
    #[error("an answer cannot be decoded")]
    Decode(#[from] prost::DecodeError),
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Self::Service(error.into())
    }
}

/// Objects in protobuf.
pub struct Protobuf<K> {
    client: Client,
    requests: Requests,
    object: PhantomData<fn() -> K>,
}

impl<K: Wire> Protobuf<K> {
    pub(super) fn all(client: Client) -> Self {
        Self {
            client,
            requests: Requests::new(K::PATH),
            object: PhantomData,
        }
    }

    /// The body of the answer, if it is one.
    async fn ask(&self, mut request: Request<Vec<u8>>, accept: HeaderValue) -> kube::Result<Body> {
        request.headers_mut().insert(header::ACCEPT, accept);
        let answer = self.client.send(request.map(Body::from)).await?;
        if !answer.status().is_success() {
            return Err(Error::Api(Box::new(refusal(answer).await)));
        }
        if media_type(answer.headers()).is_some_and(is_protobuf) {
            return Ok(answer.into_body());
        }
        let text = media_type(answer.headers()).unwrap_or("of no type");
        let text = text[..text.floor_char_boundary(MAX_TEXT)].to_owned();
        Err(WireError::ContentType(text).into())
    }
}

impl<K: Wire> Source for Protobuf<K> {
    type Object = K;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Guarded<K>>> {
        let body = self.ask(built(self.requests.list(params))?, LIST).await?;
        let page = Limited::new(body, MAX_PAGE).collect().await;
        Ok(decode_page(page.map_err(Error::Service)?.to_bytes())?)
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<Stream<K>> {
        let body = self
            .ask(built(self.requests.watch(params, version))?, WATCH)
            .await?;
        let frames = Frames::new(body.into_data_stream());
        let events = stream::unfold(frames, async |mut frames| {
            let event = match frames.next().await {
                Ok(Some(frame)) => decode_event(frame).map_err(Error::from),
                // The end, or the middle of an event: either way the rest comes with the next watch.
                Ok(None) => return None,
                Err(error) => Err(error),
            };
            Some((event, frames))
        });
        Ok(events.boxed())
    }
}

fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    value.split(';').next().map(str::trim)
}

fn is_protobuf(media_type: &str) -> bool {
    media_type.eq_ignore_ascii_case("application/vnd.kubernetes.protobuf")
}

/// What a refusal says: in protobuf, in JSON, or in words of whoever is in between.
async fn refusal(answer: Response<Body>) -> Status {
    let (head, body) = answer.into_parts();
    // One that breaks or is too long is told by its code.
    let body = Limited::new(body, MAX_REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let said = if media_type(&head.headers).is_some_and(is_protobuf) {
        decode_status(body).ok()
    } else {
        serde_json::from_slice(&body)
            .ok()
            .or_else(|| in_words(&body, head.status))
    };
    let status = said.unwrap_or_else(|| failure("", head.status));
    // Statuses are allowed to leave the code to HTTP.
    let code = match status.code {
        0 => head.status.as_u16(),
        code => code,
    };
    status.with_code(code)
}

fn in_words(body: &Bytes, status: StatusCode) -> Option<Status> {
    let text = std::str::from_utf8(body).ok()?.trim();
    Some(failure(&text[..text.floor_char_boundary(MAX_TEXT)], status))
}

fn failure(message: &str, status: StatusCode) -> Status {
    Status::failure(message, status.canonical_reason().unwrap_or("refused"))
}
