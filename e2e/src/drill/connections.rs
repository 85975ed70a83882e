//! New connections between sidecars, a handshake each, made all the time while something else happens.

use std::time::Duration;

use anyhow::Result;

use super::bed::{self, CLIENT, SHOP};
use super::scene::Scene;
use crate::report::Tally;

/// Connections of one order; short enough that the last order ends soon after what it was made beside.
const AT_A_TIME: &str = "100";

/// Before each order: what is drilled is not how many handshakes two cores can do.
const PAUSE: Duration = Duration::from_secs(1);

/// Does `work` while a client makes new connections to the backends; none of them may fail. Returns what the work
/// returned, and the connections.
pub(super) async fn during<T>(scene: &Scene, work: impl Future<Output = Result<T>>) -> Result<(T, Tally)> {
    let client = bed::peer(&scene.mesh, CLIENT).await?;
    let address = format!("web.{SHOP}:9100");
    let order = ["--send", "hi", "--count", AT_A_TIME];
    let mut tally = Tally::default();
    tokio::pin!(work);
    let outcome = loop {
        let some = async {
            tokio::time::sleep(PAUSE).await;
            client.tcp(&address, &order).await
        };
        tokio::select! {
            outcome = &mut work => break outcome?,
            part = some => {
                let part = part?.tally;
                tally.sent += part.sent;
                tally.failed += part.failed;
                tally.failures.extend(part.failures);
                for (pod, count) in part.responders {
                    *tally.responders.entry(pod).or_default() += count;
                }
            }
        }
    };
    let reason = tally
        .failures
        .first()
        .map(|failure| format!("; {}", failure.reason))
        .unwrap_or_default();
    scene.finding(
        "new connections between sidecars, with a handshake each",
        format!("{} of {} failed{reason}", tally.failed, tally.sent),
        "0 failed",
        tally.failed == 0 && tally.sent > 0,
    );
    Ok((outcome, tally))
}
