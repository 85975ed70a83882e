//! Waiting for what a mesh, eventually consistent, will do.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::progress::seconds;

/// How long configuration may take to reach every sidecar of a small mesh on a busy machine.
pub const SETTLED: Duration = Duration::from_secs(60);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Repeats `attempt` until it succeeds; after `at_most`, fails with the last error. `what` completes "waiting for ...".
pub async fn eventually<T>(
    what: &str,
    at_most: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Ok(result) => return Ok(result),
            Err(error) if begun.elapsed() >= at_most => {
                return Err(error.context(format!(
                    "gave up waiting for {what} after {}",
                    seconds(begun.elapsed())
                )));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_error_is_told() {
        let error = eventually("a miracle", Duration::ZERO, async || -> Result<()> {
            anyhow::bail!("not today")
        })
        .await
        .expect_err("it cannot succeed");
        let text = format!("{error:#}");
        assert!(text.contains("a miracle") && text.contains("not today"), "{text}");
    }
}
