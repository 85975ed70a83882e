//! bookbuyer and bookthief: the same requests, told apart only by who they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::routing::get;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Uri};
use osm_e2e::report::Tally;

use crate::client::{http as client, seconds};
use crate::serve;

#[derive(Args)]
pub(crate) struct Options {
    /// The bookstore.
    #[arg(long, env = "BOOKSTORE", default_value = "bookstore.bookstore:14001")]
    bookstore: String,
    /// Seconds between two rounds of requests.
    #[arg(long, env = "INTERVAL", default_value = "0.2", value_parser = seconds)]
    interval: Duration,
    /// Serves the counters at `/`, as JSON: one tally for each path.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// The paths, as the original's demo has them.
const PATHS: [&str; 2] = ["/books-bought", "/buy-a-book/new"];

pub(crate) async fn run(name: &'static str, options: Options) -> anyhow::Result<()> {
    let counters = Arc::new(Mutex::new(BTreeMap::<&str, Tally>::new()));
    let shown = Arc::clone(&counters);
    let report = move || async move {
        let counters: BTreeMap<&str, Tally> = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Json(counters)
    };
    let router = axum::Router::new().route("/", get(report));
    tokio::spawn(serve::serve_http(serve::listen(options.port).await?, router));

    let http = client::client(false, true);
    let began = Instant::now();
    let mut ticks = tokio::time::interval(options.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = BTreeMap::new();
    loop {
        ticks.tick().await;
        for path in PATHS {
            let uri: Uri = format!("http://{}{path}", options.bookstore).parse()?;
            let headers = vec![
                (
                    HeaderName::from_static("user-agent"),
                    HeaderValue::from_static("osm-demo-http-client/2.0"),
                ),
                (
                    HeaderName::from_static("client-app"),
                    HeaderValue::from_static(name),
                ),
            ];
            let request = client::Options {
                url: uri,
                method: Method::GET,
                headers,
                data: String::new(),
                http2: false,
                timeout: Duration::from_secs(5),
            };
            let at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let answer = client::send(&http, &request).await?;
            let wanted = answer.status.is_some_and(|status| status < 400);
            let outcome = answer.outcome();
            {
                let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
                let tally = counters.entry(path).or_default();
                tally.sent += 1;
                tally.add(&answer, wanted, at_ms);
            }
            // A line where something changed is readable; a line a request is not.
            if last.get(path) != Some(&outcome) {
                let why = answer.error.as_deref().unwrap_or(answer.body.trim_end());
                println!("{name}: GET {path}: {outcome} ({why})");
                last.insert(path, outcome);
            }
        }
    }
}
