//! The pods of the book trade, found in the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::{OUTSIDE, PODS_READY};
use crate::harness::kubernetes::{is_ready, why_not_ready};
use crate::harness::{Mesh, Peer, eventually};
use crate::report::{Answer, Tally};

/// Everyone who acts.
pub(super) struct Cast {
    pub(super) bookbuyer: Peer,
    pub(super) bookthief: Peer,
    pub(super) bookstore_v1: Peer,
    pub(super) bookstore_v2: Peer,
    pub(super) bookwarehouse: Peer,
    pub(super) mysql: Peer,
    pub(super) outsider: Peer,
}

impl Cast {
    /// Waits for all of them.
    pub(super) async fn find(mesh: &Arc<Mesh>) -> Result<Self> {
        Ok(Self {
            mysql: pod(mesh, "bookwarehouse", "app=mysql", "mysql").await?,
            bookwarehouse: pod(mesh, "bookwarehouse", "app=bookwarehouse", "bookwarehouse").await?,
            bookstore_v1: pod(mesh, "bookstore", "version=v1", "bookstore").await?,
            bookstore_v2: pod(mesh, "bookstore", "version=v2", "bookstore").await?,
            bookbuyer: pod(mesh, "bookbuyer", "app=bookbuyer", "bookbuyer").await?,
            bookthief: pod(mesh, "bookthief", "app=bookthief", "bookthief").await?,
            outsider: pod(mesh, OUTSIDE, "app=outsider", "outsider").await?,
        })
    }

    /// The pods that have sidecars, with the service account each has.
    pub(super) fn meshed(&self) -> [(&Peer, &'static str); 6] {
        [
            (&self.bookbuyer, "bookbuyer"),
            (&self.bookthief, "bookthief"),
            (&self.bookstore_v1, "bookstore-v1"),
            (&self.bookstore_v2, "bookstore-v2"),
            (&self.bookwarehouse, "bookwarehouse"),
            (&self.mysql, "mysql"),
        ]
    }
}

async fn pod(mesh: &Arc<Mesh>, namespace: &str, labels: &str, container: &str) -> Result<Peer> {
    let name = eventually(
        &format!("the pod {labels} in {namespace}"),
        PODS_READY,
        async || {
            let pods = mesh.kubernetes.pods(namespace, labels).await?;
            let pod = pods
                .iter()
                .find(|pod| pod.metadata.deletion_timestamp.is_none())
                .context("there is none")?;
            ensure!(is_ready(pod), "it is not ready: {}", why_not_ready(pod));
            Ok(pod.metadata.name.clone().unwrap_or_default())
        },
    )
    .await?;
    Peer::find(&mesh.kubernetes, namespace, &name, container).await
}

/// What a customer has counted so far, by path.
pub(super) async fn counters(customer: &Peer) -> Result<BTreeMap<String, Tally>> {
    let answer: Answer = customer.get("http://127.0.0.1:8080/", &[]).await?;
    ensure!(
        answer.error.is_none(),
        "the counters of {} cannot be read: {answer:?}",
        customer.pod
    );
    serde_json::from_str(&answer.body).context("the counters are not JSON")
}

/// What was counted between two readings, by path and outcome.
pub(super) fn between(
    earlier: &BTreeMap<String, Tally>,
    later: &BTreeMap<String, Tally>,
) -> BTreeMap<String, BTreeMap<String, u64>> {
    later
        .iter()
        .map(|(path, tally)| {
            let before = earlier.get(path);
            let outcomes = tally.outcomes.iter().filter_map(|(outcome, count)| {
                let more = count - before.map_or(0, |before| before.count(outcome));
                (more > 0).then(|| (outcome.clone(), more))
            });
            (path.clone(), outcomes.collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_counted() {
        let tally = |outcomes: &[(&str, u64)]| Tally {
            outcomes: outcomes
                .iter()
                .map(|(outcome, count)| ((*outcome).to_owned(), *count))
                .collect(),
            ..Tally::default()
        };
        let earlier = BTreeMap::from([("/a".to_owned(), tally(&[("403", 5)]))]);
        let later = BTreeMap::from([("/a".to_owned(), tally(&[("403", 5), ("200", 2)]))]);
        assert_eq!(
            between(&earlier, &later)["/a"],
            BTreeMap::from([("200".to_owned(), 2)])
        );
    }
}
