//! One HTTP request.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use osm_e2e::report::Answer;

use super::{MOST_BODY, failed, micros, seconds, timed_out};

/// A client that keeps its connections.
pub(crate) type HttpClient = Client<HttpConnector, Full<Bytes>>;

#[derive(Args, Clone)]
#[group(skip)]
pub(crate) struct Options {
    /// Where to: `http://host:port/path`.
    pub(crate) url: Uri,
    /// The method.
    #[arg(short = 'X', long, default_value = "GET")]
    pub(crate) method: Method,
    /// A header, as `name: value`; may be given several times. `host` replaces the URL's.
    #[arg(short = 'H', long = "header", value_parser = header)]
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    #[arg(short, long, default_value = "")]
    pub(crate) data: String,
    /// Speaks HTTP/2 without being asked to upgrade.
    #[arg(long)]
    pub(crate) http2: bool,
    /// Seconds to wait.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<Answer> {
    let client = client(options.http2, true);
    send(&client, &options).await
}

/// Makes a client; without `keep` each request opens a connection of its own.
pub(crate) fn client(http2: bool, keep: bool) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .pool_max_idle_per_host(if keep { usize::MAX } else { 0 })
        // A request whose connection died before it was answered counts as failed: the client must not hide that.
        .retry_canceled_requests(false)
        .build(connector)
}

/// Sends one request and waits for all of its answer.
///
/// # Errors
///
/// When no request can be made of the options.
pub(crate) async fn send(client: &HttpClient, options: &Options) -> anyhow::Result<Answer> {
    let mut request = Request::builder()
        .method(options.method.clone())
        .uri(options.url.clone());
    for (name, value) in &options.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Full::from(options.data.clone().into_bytes()))
        .context("the request cannot be made")?;
    let started = Instant::now();
    let exchange = async {
        let response = match client.request(request).await {
            Ok(response) => response,
            Err(error) => return failed(&error, started),
        };
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, MOST_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return failed(error.as_ref(), started),
        };
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect();
        Answer {
            status: Some(head.status.as_u16()),
            error: None,
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            latency_us: micros(started),
        }
    };
    Ok(tokio::time::timeout(options.timeout, exchange)
        .await
        .unwrap_or_else(|_| timed_out(options.timeout, started)))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("`{text}` is not `name: value`"))?;
    let name = name
        .trim()
        .parse()
        .map_err(|_| format!("`{name}` is not a header name"))?;
    let value = value
        .trim()
        .parse()
        .map_err(|_| format!("`{value}` is not a header value"))?;
    Ok((name, value))
}
