//! The measurements of the demo.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::books::{Cast, between, counters};
use super::table::Verdict;
use crate::harness::mesh::TRUST_DOMAIN;
use crate::harness::wait::SETTLED;
use crate::harness::{Mesh, Peer, eventually};
use crate::report::{Answer, Handshake, Tally, is_denial};

/// How long the customers are watched.
const WINDOW: Duration = Duration::from_secs(8);
/// The share of version 1 that the applied split asks for, in percent.
const SHARE: f64 = 25.0;
/// What chance may make of it in a thousand requests: more than three standard deviations.
const TOLERANCE: f64 = 5.0;

const STORE: &str = "http://bookstore.bookstore:14001";
const WAREHOUSE: &str = "http://bookwarehouse.bookwarehouse:14001/restock-books";
const MYSQL: &str = "mysql.bookwarehouse:3306";
/// What bookbuyer says of itself, and the policy asks for.
const CLIENT: [&str; 4] = [
    "-H",
    "user-agent: osm-demo-http-client/2.0",
    "-H",
    "client-app: bookbuyer",
];

/// What a line expects: a request is answered 200, or denied.
#[derive(Clone, Copy)]
enum Expected {
    Allowed,
    Denied,
}

impl Expected {
    fn says(self) -> &'static str {
        match self {
            Self::Allowed => "200",
            Self::Denied => "denied",
        }
    }

    fn holds(self, outcome: &str) -> bool {
        match self {
            Self::Allowed => outcome == "200",
            Self::Denied => is_denial(outcome),
        }
    }
}

/// Deny by default.
pub(super) async fn before_policy(cast: &Cast, verdict: &mut Verdict) -> Result<()> {
    verdict.section("before any policy");
    for customer in [&cast.bookbuyer, &cast.bookthief] {
        watch(customer, Expected::Denied, verdict).await;
    }
    let mysql = cast.bookwarehouse.tcp(MYSQL, &[]).await.map(|answer| answer.last);
    verdict.measured("bookwarehouse to mysql, TCP", "closed", mysql, judge_closed);
    Ok(())
}

/// Waits until the whole chain works: buyer, store, warehouse, database.
pub(super) async fn until_bought(cast: &Cast) -> Result<()> {
    eventually("the first book", SETTLED, async || {
        // Several in a row: both versions of the store must have their policy.
        for _ in 0..10 {
            let answer = cast
                .bookbuyer
                .get(&format!("{STORE}/buy-a-book/new"), &CLIENT)
                .await?;
            ensure!(
                answer.status == Some(200),
                "bookbuyer got {} {}",
                answer.outcome(),
                answer.body.trim_end()
            );
        }
        Ok(())
    })
    .await
}

/// What policy allows works, what it does not is refused, and all of it is mutual TLS.
pub(super) async fn with_policy(mesh: &Arc<Mesh>, cast: &Cast, verdict: &mut Verdict) -> Result<()> {
    verdict.section("who may call whom");
    watch(&cast.bookbuyer, Expected::Allowed, verdict).await;
    watch(&cast.bookthief, Expected::Denied, verdict).await;
    calls(cast, verdict).await;
    split(cast, verdict).await;
    transport(cast, verdict).await;
    outside(cast, verdict).await;
    machinery(mesh, cast, verdict).await;
    Ok(())
}

/// Counts what a customer gets by itself for a while.
async fn watch(customer: &Peer, expected: Expected, verdict: &mut Verdict) {
    let name = &customer.container;
    let counted = async {
        let earlier = counters(customer).await?;
        tokio::time::sleep(WINDOW).await;
        anyhow::Ok(between(&earlier, &counters(customer).await?))
    };
    match counted.await {
        Err(error) => verdict.line(
            format!("{name} by itself"),
            expected.says(),
            format!("{error:#}"),
            false,
        ),
        Ok(paths) => {
            for (path, outcomes) in paths {
                let holds = outcomes.keys().all(|outcome| expected.holds(outcome)) && !outcomes.is_empty();
                verdict.line(
                    format!("{name} to bookstore, GET {path}"),
                    expected.says(),
                    describe(&outcomes),
                    holds,
                );
            }
        }
    }
}

async fn calls(cast: &Cast, verdict: &mut Verdict) {
    let bought = format!("{STORE}/books-bought");
    let buy = format!("{STORE}/buy-a-book/new");
    let requests: [(&str, &Peer, &str, Vec<&str>, Expected); 6] = [
        (
            "bookbuyer to bookstore, without its header",
            &cast.bookbuyer,
            &bought,
            vec![],
            Expected::Denied,
        ),
        (
            "bookbuyer to bookstore, POST instead of GET",
            &cast.bookbuyer,
            &buy,
            vec!["-X", "POST"],
            Expected::Denied,
        ),
        (
            "bookthief to bookstore, as if it were bookbuyer",
            &cast.bookthief,
            &bought,
            CLIENT.to_vec(),
            Expected::Denied,
        ),
        (
            "bookstore-v1 to bookwarehouse, POST",
            &cast.bookstore_v1,
            WAREHOUSE,
            vec!["-X", "POST"],
            Expected::Allowed,
        ),
        (
            "bookstore-v2 to bookwarehouse, POST",
            &cast.bookstore_v2,
            WAREHOUSE,
            vec!["-X", "POST"],
            Expected::Allowed,
        ),
        (
            "bookbuyer to bookwarehouse, POST",
            &cast.bookbuyer,
            WAREHOUSE,
            vec!["-X", "POST"],
            Expected::Denied,
        ),
    ];
    for (what, who, url, options, expected) in requests {
        let answer = who.get(url, &options).await;
        verdict.measured(what, expected.says(), answer, |answer: Answer| {
            let outcome = answer.outcome();
            let holds = expected.holds(&outcome);
            (outcome, holds)
        });
    }
    let allowed = cast.bookwarehouse.tcp(MYSQL, &[]).await.map(|answer| answer.last);
    verdict.measured(
        "bookwarehouse to mysql, TCP",
        "greeting of the database",
        allowed,
        |answer: Answer| {
            // The first packet of the protocol carries the server's version.
            let greeted = answer.body.contains("MariaDB");
            (
                if greeted {
                    "MariaDB's greeting".to_owned()
                } else {
                    answer.outcome()
                },
                greeted,
            )
        },
    );
    let denied = cast.bookbuyer.tcp(MYSQL, &[]).await.map(|answer| answer.last);
    verdict.measured("bookbuyer to mysql, TCP", "closed", denied, judge_closed);
}

async fn split(cast: &Cast, verdict: &mut Verdict) {
    verdict.section("how bookstore.bookstore is split");
    let options = [&CLIENT[..], &["--rate", "100", "--duration", "10"]].concat();
    let load = cast
        .bookbuyer
        .load(&format!("{STORE}/books-bought"), &options)
        .await;
    let expected = format!("{SHARE} % (± {TOLERANCE}) to version 1, all answered");
    verdict.measured(
        "bookbuyer to bookstore, 100 a second",
        expected,
        load,
        |load: Tally| {
            let count = |identity: &str| load.identities.get(identity).copied().unwrap_or_default();
            let (first, second) = (count("bookstore-v1"), count("bookstore-v2"));
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let share = 100.0 * first as f64 / (first + second).max(1) as f64;
            let text = format!(
                "{first} to v1, {second} to v2: {share:.1} %; {} of {} failed",
                load.failed, load.sent
            );
            (
                text,
                load.failed == 0 && load.sent > 500 && (share - SHARE).abs() <= TOLERANCE,
            )
        },
    );
}

async fn transport(cast: &Cast, verdict: &mut Verdict) {
    verdict.section("mutual TLS, and between whom");
    for (server, account, sni) in [
        (
            &cast.bookstore_v1,
            "bookstore-v1",
            "bookstore-v1.bookstore.svc.cluster.local",
        ),
        (
            &cast.bookwarehouse,
            "bookwarehouse",
            "bookwarehouse.bookwarehouse.svc.cluster.local",
        ),
    ] {
        let name = format!("{account}.{}.{TRUST_DOMAIN}", server.namespace);
        let address = format!("{}:14001", server.ip);
        let shown = cast
            .outsider
            .tls(&address, &["--sni", sni, "--alpn", "osm"])
            .await;
        let what = format!("certificate on the wire at {account}; a client without one");
        verdict.measured(what, format!("{name}; refused"), shown, |shown: Handshake| {
            let Some(certificate) = shown.certificates.first() else {
                return (
                    format!("no certificate: {}", shown.error.unwrap_or_default()),
                    false,
                );
            };
            let refused = shown.error.is_some();
            let text = format!(
                "{}, issued by {}; {}",
                certificate.common_name,
                certificate.issuer,
                if refused { "refused" } else { "let in" }
            );
            (
                text,
                certificate.common_name == name && certificate.names.contains(&name) && refused,
            )
        });
    }
    for (peer, account) in cast.meshed() {
        let name = format!("{account}.{}.{TRUST_DOMAIN}", peer.namespace);
        let identities = peer.envoy().identities().await;
        // Whoever may call nobody and serves nobody is given no certificate to do it with.
        if peer.pod == cast.bookthief.pod {
            let judge = |identities: Vec<String>| {
                (
                    format!("{} certificates", identities.len()),
                    identities.is_empty(),
                )
            };
            verdict.measured(
                format!("identity of {account}'s sidecar"),
                "0 certificates",
                identities,
                judge,
            );
            continue;
        }
        verdict.measured(
            format!("identity of {account}'s sidecar"),
            name.clone(),
            identities,
            |identities| (identities.join(", "), identities.contains(&name)),
        );
    }
    let stats = async {
        let (client, server) = (
            cast.bookbuyer.envoy().stats().await?,
            cast.bookstore_v1.envoy().stats().await?,
        );
        let sum = |stats: &BTreeMap<String, u64>, prefix: &str, suffix: &str| -> u64 {
            let of = |(name, count): (&String, &u64)| {
                (name.starts_with(prefix) && name.ends_with(suffix)).then_some(*count)
            };
            stats.iter().filter_map(of).sum()
        };
        let upstream = "cluster.bookstore/bookstore-v1|";
        anyhow::Ok((
            Connections {
                opened: sum(&client, upstream, ".upstream_cx_total"),
                failed: sum(&client, upstream, ".upstream_cx_connect_fail"),
                shaken: sum(&client, upstream, ".ssl.handshake"),
            },
            sum(&server, "listener.0.0.0.0_15003.", ".ssl.handshake")
                + sum(&server, "listener.[__]_15003.", ".ssl.handshake"),
        ))
    };
    let expected = "every connection shook hands";
    verdict.measured(
        "bookbuyer to bookstore-v1, connections",
        expected,
        stats.await,
        |(connections, accepted)| {
            let Connections {
                opened,
                failed,
                shaken,
            } = connections;
            (
                format!(
                    "{opened} opened, {failed} of them failed, {shaken} handshakes here, {accepted} there"
                ),
                connections.all_shook_hands() && accepted > 0,
            )
        },
    );
}

/// What a sidecar counts of its connections to a cluster.
#[derive(Clone, Copy)]
struct Connections {
    opened: u64,
    /// Never made, before the other side was ready: no handshake, no traffic.
    failed: u64,
    /// Over which TLS was agreed upon.
    shaken: u64,
}

impl Connections {
    /// Whether nothing went over a connection in plain text. One may be in the middle of its handshake.
    fn all_shook_hands(self) -> bool {
        self.shaken > 0 && self.shaken <= self.opened && self.shaken + self.failed + 1 >= self.opened
    }
}

async fn outside(cast: &Cast, verdict: &mut Verdict) {
    verdict.section("from outside the mesh");
    let store = &cast.bookstore_v1;
    for (what, url) in [
        (
            "HTTP to bookstore's pod",
            format!("http://{}:14001/books-bought", store.ip),
        ),
        ("HTTP to bookstore's Service", format!("{STORE}/books-bought")),
    ] {
        let answer = cast.outsider.get(&url, &CLIENT).await;
        verdict.measured(what, "closed", answer, judge_closed);
    }
    let forged = format!("bookbuyer.bookbuyer.{TRUST_DOMAIN}");
    let options = [
        "--sni",
        "bookstore-v1.bookstore.svc.cluster.local",
        "--alpn",
        "osm",
        "--forge",
        &forged,
    ];
    let answer = cast.outsider.tls(&format!("{}:14001", store.ip), &options).await;
    let what = format!("TLS with a home-made certificate of {forged}");
    verdict.measured(what, "refused", answer, |answer: Handshake| match answer.error {
        Some(error) => (error, true),
        None => ("let in".to_owned(), false),
    });
}

async fn machinery(mesh: &Arc<Mesh>, cast: &Cast, verdict: &mut Verdict) {
    verdict.section("the machinery");
    let mut healthy = Ok(());
    for (peer, _) in cast.meshed() {
        healthy = healthy.and(peer.envoy().check_healthy().await);
    }
    verdict.measured(
        "sidecars",
        "connected, no configuration rejected",
        healthy,
        |()| (format!("{} connected, none rejected", cast.meshed().len()), true),
    );
    for component in ["osm-controller", "osm-injector"] {
        let ready = mesh.component_ready(component, 2, Duration::from_secs(10)).await;
        verdict.measured(component, "2 ready", ready, |()| ("2 ready".to_owned(), true));
    }
    // The warehouse answers with the number of rows in its table.
    let rows = cast.bookstore_v1.get(WAREHOUSE, &["-X", "POST"]).await;
    verdict.measured(
        "deliveries in the database",
        "more than 10",
        rows,
        |answer: Answer| {
            let count = answer.body.trim().parse::<u64>().unwrap_or_default();
            (format!("{count} rows"), count > 10)
        },
    );
}

/// A refusal without an answer.
fn judge_closed(answer: Answer) -> (String, bool) {
    let outcome = answer.outcome();
    let closed = matches!(outcome.as_str(), "closed" | "reset" | "refused");
    (outcome, closed)
}

fn describe(outcomes: &BTreeMap<String, u64>) -> String {
    if outcomes.is_empty() {
        return "nothing".to_owned();
    }
    outcomes
        .iter()
        .map(|(outcome, count)| format!("{count} × {outcome}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_in_plain_text_is_noticed() {
        let judge = |opened, failed, shaken| {
            Connections {
                opened,
                failed,
                shaken,
            }
            .all_shook_hands()
        };
        assert!(judge(12, 0, 12));
        assert!(judge(12, 3, 9));
        assert!(judge(12, 0, 11), "one is under way");
        assert!(!judge(12, 0, 1), "one of many is not every one");
        assert!(!judge(12, 12, 0), "nothing was proven");
        assert!(!judge(0, 0, 0), "nothing was proven");
    }
}
