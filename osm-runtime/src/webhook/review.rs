//! AdmissionReview v1 over HTTP.
//!
//! Owns everything about a review but the verdict. Invariants: whatever the body, the answer is a 4xx or a review that
//! echoes the request's uid; a verdict that panics or takes too long is a denial that says so; bodies, their number
//! and the time all of it takes are bounded.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use futures::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use serde::Deserialize;
use tokio::{sync::Semaphore, time::timeout};

use crate::metrics::Metrics;

/// What is asked.
pub type Request = AdmissionRequest<DynamicObject>;
/// What is answered.
pub type Verdict = AdmissionResponse;

/// Longest uid that is echoed; the API server's has 36 bytes.
const MAX_UID: usize = 256;
/// Longest message of a denial.
const MAX_MESSAGE: usize = 4_096;

/// Bounds of a webhook.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a body. The API server sends the object twice on updates, 1.5 MiB each at most.
    pub body: usize,
    /// Most reviews worked on at a time; more wait.
    pub concurrency: usize,
    /// Longest time for all of a review. Less than the `timeoutSeconds` of the webhook configuration, so that the
    /// answer says what happened.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 6 * 1024 * 1024,
            concurrency: 64,
            deadline: Duration::from_secs(9),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    kind: &'static str,
    success: &'static str,
}

/// Metrics of the webhooks of a process; the names are the original's.
#[derive(Clone, Debug, Default)]
pub struct ReviewMetrics {
    answered: Family<Answered, Counter>,
}

impl ReviewMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        let help = "Answers of the admission webhook, by kind of object; errors count as no success";
        metrics.register(|registry| {
            registry.register("osm_admission_webhook_response", help, new.answered.clone())
        });
        new
    }
}

/// The kinds that are counted by name; labels are bounded (law 12).
const KINDS: [&str; 6] = [
    "Pod",
    "TrafficTarget",
    "Egress",
    "IngressBackend",
    "MeshRootCertificate",
    "UpstreamTrafficSetting",
];

/// A router that answers AdmissionReviews posted to `path` with what `judge` says.
///
/// `judge` returns a [`Verdict`] made by `Verdict::from(&request)`; the uid is put in again in any case. What it does
/// must be safe to be cut off at an await, and to be done twice: the API server repeats itself.
pub fn router<F, Fut>(path: &str, limits: Limits, metrics: ReviewMetrics, judge: F) -> Router
where
    F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limits.concurrency));
    let answer = move |headers: HeaderMap, body: Body| {
        let (judge, metrics, permits) = (judge.clone(), metrics.clone(), permits.clone());
        async move { answer(headers, body, limits, &metrics, &permits, judge).await }
    };
    Router::new().route(path, post(answer))
}

async fn answer<F, Fut>(
    headers: HeaderMap,
    body: Body,
    limits: Limits,
    metrics: &ReviewMetrics,
    permits: &Semaphore,
    judge: F,
) -> Response
where
    F: Fn(Request) -> Fut,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let count = |kind: &str, success: bool| {
        let kind = KINDS.into_iter().find(|known| *known == kind).unwrap_or("other");
        metrics
            .answered
            .get_or_create(&Answered {
                kind,
                success: if success { "true" } else { "false" },
            })
            .inc();
    };
    let begun = tokio::time::Instant::now();
    let read = timeout(limits.deadline, async {
        // Held by the caller's frame from here on: bodies are bounded in number too.
        let permit = permits.acquire().await;
        (permit, decode(&headers, body, limits.body).await)
    });
    let (_permit, decoded) = match read.await {
        Ok(read) => read,
        Err(_) => {
            count("", false);
            return (StatusCode::REQUEST_TIMEOUT, "the request's body took too long\n").into_response();
        }
    };
    let request = match decoded {
        Ok(request) => request,
        Err(Refusal::Http(status, message)) => {
            count("", false);
            return (status, format!("{message}\n")).into_response();
        }
        Err(Refusal::Review(uid, message)) => {
            count("", false);
            return review(Verdict::invalid(message), uid);
        }
    };
    let (uid, kind) = (request.uid.clone(), request.kind.kind.clone());
    let left = limits.deadline.saturating_sub(begun.elapsed());
    let judged = timeout(left, AssertUnwindSafe(judge(request)).catch_unwind()).await;
    let verdict = match judged {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(_)) => failed(500, "the webhook failed on this object; its log says where"),
        Err(_) => failed(504, "the webhook took too long; try again"),
    };
    count(&kind, verdict.allowed);
    review(verdict, uid)
}

/// A denial that is the webhook's own fault.
fn failed(code: u16, message: &str) -> Verdict {
    let mut verdict = Verdict::invalid(message);
    verdict.result.code = code;
    verdict
}

fn review(mut verdict: Verdict, uid: String) -> Response {
    verdict.uid = uid;
    if !verdict.allowed {
        let Status { message, code, .. } = &mut verdict.result;
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        if *code == 0 {
            *code = 403;
        }
    }
    // The API is written in base64; the type would write an array of numbers, which is understood as well but four
    // times as long.
    let patch = verdict.patch.take().map(|patch| BASE64.encode(patch));
    match serde_json::to_value(verdict.into_review()) {
        Ok(mut review) => {
            if let Some(patch) = patch {
                review["response"]["patch"] = patch.into();
            }
            Json(review).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Why a body is no request.
enum Refusal {
    /// Nobody to answer to.
    Http(StatusCode, String),
    /// Somebody to answer to: the uid.
    Review(String, String),
}

async fn decode(headers: &HeaderMap, body: Body, limit: usize) -> Result<Request, Refusal> {
    let refuse = |status, message: &str| Refusal::Http(status, message.to_owned());
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type must be application/json",
        ));
    }
    let body = match Limited::new(body, limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {limit} bytes");
            return Err(Refusal::Http(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Err(_) => return Err(refuse(StatusCode::BAD_REQUEST, "the body ended early")),
    };
    if body.is_empty() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "the body is empty; send an AdmissionReview",
        ));
    }
    parse(&body)
}

fn parse(body: &[u8]) -> Result<Request, Refusal> {
    let refuse = |message: String| Refusal::Http(StatusCode::BAD_REQUEST, message);
    let review: AdmissionReview<DynamicObject> = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => {
            let message = format!(
                "the body is not an AdmissionReview of {META_API_VERSION_V1}: {}",
                position(&error)
            );
            return Err(match uid(body) {
                Some(uid) => Refusal::Review(uid, message),
                None => refuse(message),
            });
        }
    };
    if review.types.api_version != META_API_VERSION_V1 || review.types.kind != META_KIND {
        return Err(refuse(format!(
            "only {META_KIND} of {META_API_VERSION_V1} is understood"
        )));
    }
    match review.request {
        Some(request) if request.uid.is_empty() || request.uid.len() > MAX_UID => Err(refuse(format!(
            "the request's uid must have 1 to {MAX_UID} bytes"
        ))),
        Some(mut request) => {
            request.types = review.types;
            Ok(request)
        }
        None => Err(refuse("the AdmissionReview has no request".to_owned())),
    }
}

/// What is wrong and where, without quoting much of the body.
fn position(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(256));
    text
}

/// The uid of a request whose other parts do not decode.
fn uid(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Review {
        request: Request,
    }
    #[derive(Deserialize)]
    struct Request {
        uid: String,
    }
    let review: Review = serde_json::from_slice(body).ok()?;
    let uid = review.request.uid;
    (1..=MAX_UID).contains(&uid.len()).then_some(uid)
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
