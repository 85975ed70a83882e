//! One WebSocket message and its answer.

use std::{
    io::{self, ErrorKind},
    time::{Duration, Instant},
};

use clap::Args;
use futures::{SinkExt as _, StreamExt as _};
use osm_e2e::report::Answer;
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::{failed, micros, seconds, timed_out};

#[derive(Args)]
pub(crate) struct Options {
    /// Where to: `ws://host:port/path`.
    url: String,
    /// What to say.
    #[arg(long, default_value = "hello")]
    send: String,
    /// Seconds to wait.
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let exchange = async {
        let (mut socket, response) = tokio_tungstenite::connect_async(&options.url).await?;
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect();
        socket.send(Message::text(&options.send)).await?;
        let body = match socket.next().await {
            Some(message) => message?.into_text()?.to_string(),
            None => return Err(Error::ConnectionClosed),
        };
        socket.close(None).await?;
        Ok(Answer {
            status: Some(response.status().as_u16()),
            error: None,
            headers,
            body,
            latency_us: micros(started),
        })
    };
    Ok(match tokio::time::timeout(options.timeout, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(Error::Http(response))) => Answer {
            status: Some(response.status().as_u16()),
            latency_us: micros(started),
            ..Answer::default()
        },
        Ok(Err(Error::Protocol(ProtocolError::HandshakeIncomplete))) => {
            let ended = io::Error::new(ErrorKind::UnexpectedEof, "it ended before there was an answer");
            failed(&ended, started)
        }
        Ok(Err(error)) => failed(&error, started),
        Err(_) => timed_out(options.timeout, started),
    })
}
