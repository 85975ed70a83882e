//! Requests at a constant rate, each counted with what happened to it.
//!
//! Invariant: the schedule does not wait for answers (an overloaded server is not spared), and no request is lost from
//! the books: `sent = ok + failed`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use axum::Json;
use axum::routing::get;
use clap::Args;
use osm_e2e::report::{Answer, Latency, Tally};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::{http, seconds};
use crate::serve;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    request: http::Options,
    /// Requests a second, at most 100,000.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Seconds to go on; until stopped when absent.
    #[arg(long, value_parser = seconds)]
    duration: Option<Duration>,
    /// The statuses that count as success, comma separated; everything below 400 when absent.
    #[arg(long, value_delimiter = ',')]
    want: Vec<u16>,
    /// Opens a connection for each request.
    #[arg(long)]
    fresh: bool,
    /// Most requests under way; what would go beyond counts as failed (`late`).
    #[arg(long, default_value_t = 2000)]
    concurrency: usize,
    /// Serves what was counted so far at `/`, as JSON.
    #[arg(long)]
    report_port: Option<u16>,
}

/// What was counted so far, and every latency.
#[derive(Default)]
struct Books {
    tally: Tally,
    latencies: Vec<u64>,
}

/// Most latencies kept: an hour of 1000 requests a second.
const MOST_LATENCIES: usize = 3_600_000;

impl Books {
    fn add(&mut self, answer: &Answer, want: &[u16], at_ms: u64) {
        let wanted = answer.error.is_none()
            && answer.status.is_some_and(|status| {
                if want.is_empty() {
                    status < 400
                } else {
                    want.contains(&status)
                }
            });
        if answer.error.is_none() && self.latencies.len() < MOST_LATENCIES {
            self.latencies.push(answer.latency_us);
        }
        self.tally.sent += 1;
        self.tally.add(answer, wanted, at_ms);
    }

    fn report(&self, since: Instant) -> Tally {
        let mut tally = self.tally.clone();
        tally.latency_us = Latency::of(self.latencies.clone());
        tally.elapsed_ms = elapsed_ms(since);
        tally
    }
}

pub(crate) async fn run(options: Options) -> anyhow::Result<Tally> {
    ensure!(
        options.rate > 0.0 && options.rate <= 100_000.0,
        "--rate must be above 0 and at most 100000"
    );
    let client = http::client(options.request.http2, !options.fresh);
    let books = Arc::new(Mutex::new(Books::default()));
    let slots = Arc::new(Semaphore::new(options.concurrency));
    let (request, want): (Arc<http::Options>, Arc<[u16]>) = (Arc::new(options.request), options.want.into());
    let began = Instant::now();
    if let Some(port) = options.report_port {
        let books = Arc::clone(&books);
        let report = move || async move { Json(lock(&books).report(began)) };
        tokio::spawn(serve::serve_http(
            serve::listen(port).await?,
            axum::Router::new().route("/", get(report)),
        ));
    }

    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / options.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    let end = async {
        match options.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let stopped = crate::stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            () = &mut end => break,
            result = &mut stopped => { result?; break }
            Some(_) = under_way.join_next() => {}
            _ = ticks.tick() => {
                let at_ms = elapsed_ms(began);
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                    let late = Answer { error: Some("late: too many requests under way".into()), ..Answer::default() };
                    let mut books = lock(&books);
                    books.tally.late += 1;
                    books.add(&late, &want, at_ms);
                    continue;
                };
                let (client, request) = (client.clone(), Arc::clone(&request));
                let (books, want) = (Arc::clone(&books), Arc::clone(&want));
                under_way.spawn(async move {
                    let answer = http::send(&client, &request).await.unwrap_or_else(|error| Answer {
                        error: Some(format!("request: {error:#}")),
                        ..Answer::default()
                    });
                    lock(&books).add(&answer, &want, at_ms);
                    drop(slot);
                });
            }
        }
    }
    // Requests under way end by themselves, at the latest with their timeout.
    while under_way.join_next().await.is_some() {}
    let report = lock(&books).report(began);
    Ok(report)
}

fn lock(books: &Mutex<Books>) -> std::sync::MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
