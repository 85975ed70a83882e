//! TCP connections, on which the client or the server may speak first.

use std::time::{Duration, Instant};

use clap::Args;
use osm_e2e::report::{Answer, RESPONDER_HEADER, Tally};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{MOST_BODY, failed, micros, seconds, timed_out};

#[derive(Args)]
pub(crate) struct Options {
    /// Where to: `host:port`.
    address: String,
    /// What to say first; nothing when empty: the server then speaks first.
    #[arg(long, default_value = "")]
    send: String,
    /// How many connections, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Seconds to wait on each.
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

/// All connections together, and the last of them.
#[derive(Serialize)]
pub(crate) struct Result {
    #[serde(flatten)]
    last: Answer,
    tally: Tally,
}

pub(crate) async fn run(options: Options) -> Result {
    let mut result = Result {
        last: Answer::default(),
        tally: Tally::default(),
    };
    let beginning = Instant::now();
    for _ in 0..options.count {
        let started = Instant::now();
        let at = micros(beginning) / 1000;
        result.tally.sent += 1;
        result.last = match tokio::time::timeout(options.timeout, exchange(&options)).await {
            Ok(Ok(text)) => answer(text, started),
            Ok(Err(error)) => failed(&error, started),
            Err(_) => timed_out(options.timeout, started),
        };
        let wanted = result.last.error.is_none();
        result.tally.add(&result.last, wanted, at);
    }
    result.tally.elapsed_ms = micros(beginning) / 1000;
    result
}

async fn exchange(options: &Options) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(&options.address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(options.send.as_bytes()).await?;
    let mut buffer = vec![0; MOST_BODY];
    match stream.read(&mut buffer).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        read => Ok(String::from_utf8_lossy(&buffer[..read]).into_owned()),
    }
}

/// The test servers begin what they say with `<pod>: `.
fn answer(text: String, started: Instant) -> Answer {
    let mut answer = Answer {
        latency_us: micros(started),
        ..Answer::default()
    };
    if let Some((pod, _)) = text.split_once(": ") {
        answer.headers.insert(RESPONDER_HEADER.to_owned(), pod.to_owned());
    }
    answer.body = text;
    answer
}
