//! New connections between sidecars, a handshake each, made all the time while something else happens.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::bed::{self, CLIENT, SHOP};
use super::scene::Scene;
use crate::harness::Peer;
use crate::report::Tally;

/// Connections of one order; short enough that the last order ends soon after what it was made beside.
const AT_A_TIME: &str = "100";

/// Before each order: what is drilled is not how many handshakes two cores can do.
const PAUSE: Duration = Duration::from_secs(1);

/// Does `work` while a client makes new connections to the backends, and makes some more when it is done; none of them may
/// fail. Returns what the work returned, and which backends answered the last ones.
pub(super) async fn during<T>(
    scene: &Scene,
    work: impl Future<Output = Result<T>>,
) -> Result<(T, BTreeSet<String>)> {
    let client = bed::peer(&scene.mesh, CLIENT).await?;
    let mut tally = Tally::default();
    tokio::pin!(work);
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome?,
            some = order(&client) => add(&mut tally, some?),
        }
    };
    let last = order(&client).await?;
    let answered = last.responders.keys().cloned().collect();
    add(&mut tally, last);
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
    Ok((outcome, answered))
}

async fn order(client: &Peer) -> Result<Tally> {
    tokio::time::sleep(PAUSE).await;
    let address = format!("web.{SHOP}:9100");
    Ok(client
        .tcp(&address, &["--send", "hi", "--count", AT_A_TIME])
        .await?
        .tally)
}

fn add(sum: &mut Tally, part: Tally) {
    sum.sent += part.sent;
    sum.failed += part.failed;
    sum.failures.extend(part.failures);
}
