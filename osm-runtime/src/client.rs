//! The Kubernetes client: where the API server is, and how long it may take to answer.
//!
//! Invariant: no call waits forever. The head of every answer must come within [`HEAD`], connecting within
//! [`CONNECT`]; whole calls are bounded with [`within`], or with [`retrying`] where a repetition does no harm.

use std::{path::PathBuf, time::Duration};

use http::header::USER_AGENT;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::timeout::TimeoutLayer;

use crate::{backoff::Backoff, tls};

/// Longest wait for a connection to the API server.
pub const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer.
pub const HEAD: Duration = Duration::from_secs(30);
/// Longest time a usual call may take, its repetitions included.
pub const CALL: Duration = Duration::from_secs(30);

/// Why a call to Kubernetes failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no way to an API server.
    #[error("no Kubernetes cluster is configured: {0}; run inside a cluster, or give a kubeconfig")]
    Config(String),
    /// The API server refused, or could not be reached.
    #[error("{}", describe(.0))]
    Kube(#[from] kube::Error),
    /// It took too long. What was asked for may have been done all the same.
    #[error("the Kubernetes API did not answer within {} seconds", .0.as_secs())]
    Timeout(Duration),
}

impl ClientError {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// The API server's status code, if it answered with one.
    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the object exists already, or was changed by someone else meanwhile.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether the same call may succeed soon: the server is overloaded, restarting or out of reach.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Config(_) => false,
            Self::Timeout(_) => true,
            Self::Kube(kube::Error::Api(status)) => matches!(status.code, 408 | 429 | 500..=599),
            Self::Kube(kube::Error::SerdeError(_) | kube::Error::BuildRequest(_)) => false,
            Self::Kube(_) => true,
        }
    }

    /// Whether permission is missing.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.code(), Some(401 | 403))
    }
}

/// What a Kubernetes error says, without the client's wrapping. Objects, and so secrets, are not quoted: answers that
/// cannot be decoded say where, not what.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        kube::Error::SerdeError(error) => {
            format!(
                "an answer cannot be decoded (line {}, column {})",
                error.line(),
                error.column()
            )
        }
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text.push_str(": ");
                    text.push_str(&cause_text);
                }
                source = cause.source();
            }
            text
        }
    }
}

/// Connects: with the kubeconfig given, else in-cluster or by `$KUBECONFIG`. `agent` names the program to the API
/// server's audit log (`osm-controller/2.0.0`).
///
/// Nothing is sent yet: an API server that is down shows in the first call.
///
/// # Errors
/// [`ClientError::Config`].
pub async fn connect(agent: &str, kubeconfig: Option<PathBuf>) -> Result<Client, ClientError> {
    tls::provider();
    let unusable = |error: &dyn std::fmt::Display| ClientError::Config(error.to_string());
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| unusable(&error))?
        }
        None => Config::infer().await.map_err(|error| unusable(&error))?,
    };
    config.connect_timeout = Some(CONNECT);
    // Its own policy waits up to a quarter of an hour between attempts; [`retrying`] is bounded.
    config.default_retry = false;
    if let Ok(agent) = agent.parse() {
        config.headers.push((USER_AGENT, agent));
    }
    let builder = ClientBuilder::try_from(config).map_err(|error| unusable(&error))?;
    Ok(builder.with_layer(&TimeoutLayer::new(HEAD)).build())
}

/// A call that must be over within `limit`.
///
/// # Errors
/// [`ClientError::Timeout`], or why it failed.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ClientError::Timeout(limit)),
    }
}

/// A call that may be repeated, and is while its failures are temporary and `limit` is not over. Not for what must
/// happen once: an answer may be lost after the deed.
///
/// # Errors
/// The last failure; [`ClientError::Timeout`] when there was no answer at all.
pub async fn retrying<T, F>(limit: Duration, mut call: impl FnMut() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let end = tokio::time::Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let failure = match within(left, call()).await {
            Err(error) if error.is_temporary() => error,
            finished => return finished,
        };
        let wait = backoff.next_wait();
        if tokio::time::Instant::now() + wait >= end {
            return Err(match failure {
                ClientError::Timeout(_) => ClientError::Timeout(limit),
                other => other,
            });
        }
        tokio::time::sleep(wait).await;
    }
}
