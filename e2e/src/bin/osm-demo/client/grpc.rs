//! One gRPC call: the standard health check.

use std::time::{Duration, Instant};

use clap::Args;
use http::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use osm_e2e::report::{Answer, RESPONDER_HEADER};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{micros, seconds, timed_out};

#[derive(Args)]
pub(crate) struct Options {
    /// Where to: `http://host:port`.
    url: Uri,
    /// The service whose health is asked for; the whole server's when empty.
    #[arg(long, default_value = "")]
    service: String,
    /// Seconds to wait.
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<Answer> {
    let channel = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<tonic::body::Body>();
    let mut health = HealthClient::with_origin(channel, options.url.clone());
    let started = Instant::now();
    let call = health.check(HealthCheckRequest {
        service: options.service,
    });
    Ok(match tokio::time::timeout(options.timeout, call).await {
        Err(_) => timed_out(options.timeout, started),
        Ok(result) => {
            let mut answer = Answer {
                latency_us: micros(started),
                ..Answer::default()
            };
            let metadata = match &result {
                Ok(response) => {
                    answer.status = Some(0);
                    answer.body = format!("{:?}", response.get_ref().status());
                    response.metadata()
                }
                Err(status) => {
                    answer.status = u16::try_from(i32::from(status.code())).ok();
                    answer.body = status.message().to_owned();
                    status.metadata()
                }
            };
            if let Some(pod) = metadata.get(RESPONDER_HEADER).and_then(|pod| pod.to_str().ok()) {
                answer.headers.insert(RESPONDER_HEADER.to_owned(), pod.to_owned());
            }
            answer
        }
    })
}
