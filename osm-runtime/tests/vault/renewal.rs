//! Certificates that are due while Vault is slow, hangs, is gone, or has another root: what was issued before goes on
//! being presented, readiness and the operator are told, and all goes on by itself when Vault is back.

use std::time::Duration;

use jiff::Timestamp;
use osm_runtime::{
    CancellationToken,
    health::Health,
    issuer::{IssueError, Issuer, Leaf, Trouble},
    renewal,
};
use serde_json::json;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use super::{
    SOON, ads, ca, ca_over_in, open,
    server::{Server, program},
};

/// The loops of a replica that has its root, with what they did.
struct Replica {
    issuer: Issuer,
    health: Health,
    presented: UnboundedReceiver<Leaf>,
    trouble: UnboundedReceiver<Trouble>,
    root_problems: UnboundedReceiver<String>,
    stop: CancellationToken,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Replica {
    /// Its own certificate lives for 20 seconds, so that it is due after about 9.
    async fn start(server: &Server) -> Self {
        let issuer = open(server.options()).await.unwrap();
        let (health, stop) = (Health::new(), CancellationToken::new());
        let (present, presented) = unbounded_channel();
        let (tell, trouble) = unbounded_channel();
        let (report, root_problems) = unbounded_channel();
        let certificate = health.condition("certificate");
        certificate.set_not_ready("there is none yet");
        tokio::spawn(renewal::keep(
            issuer.clone(),
            ads(20),
            certificate,
            stop.clone(),
            move |leaf: &Leaf| present.send(leaf.clone()),
        ));
        tokio::spawn(renewal::report_trouble(
            issuer.clone(),
            stop.clone(),
            move |trouble| drop(tell.send(trouble.clone())),
        ));
        tokio::spawn(renewal::guard_root(
            issuer.clone(),
            health.condition("root"),
            stop.clone(),
            move |problem| drop(report.send(problem.to_owned())),
        ));
        Self {
            issuer,
            health,
            presented,
            trouble,
            root_problems,
            stop,
        }
    }

    /// The next certificate that is presented.
    async fn presents(&mut self, what: &str) -> Leaf {
        let leaf = timeout(SOON, self.presented.recv()).await;
        leaf.unwrap_or_else(|_| panic!("no certificate: {what}")).unwrap()
    }

    async fn becomes(&self, ready: bool) {
        let mut now = self.health.ready();
        let changed = timeout(SOON, now.wait_for(|now| *now == ready)).await;
        assert!(
            changed.is_ok(),
            "not ready={ready}: {:?}",
            self.health.not_ready()
        );
    }
}

async fn heard<T>(what: &mut UnboundedReceiver<T>) -> T {
    timeout(SOON, what.recv())
        .await
        .expect("nothing was told")
        .unwrap()
}

#[tokio::test]
async fn a_vault_that_is_slow_delays_a_renewal_and_nothing_else() {
    let Some(program) = program() else { return };
    let server = Server::start(&program, &ca(), 0).await;
    let mut replica = Replica::start(&server).await;
    let first = replica.presents("the first").await;
    replica.becomes(true).await;
    // The next is due after 8 to 10 s; it hangs from before that until after.
    server.signal("-STOP").await;
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(replica.presented.try_recv().is_err(), "Vault stands still");
    server.signal("-CONT").await;
    let second = timeout(Duration::from_secs(5), replica.presents("what was asked for")).await;
    let second = second.expect("the request that waited was answered");
    assert!(second.validity().not_after > first.validity().not_after);
    assert!(replica.health.is_ready());
    assert!(replica.trouble.try_recv().is_err(), "slow is no trouble");
}

#[tokio::test]
async fn a_vault_that_hangs_or_is_gone_costs_readiness_once_the_certificate_is_over() {
    let Some(program) = program() else { return };
    let ca = ca();
    let server = Server::start(&program, &ca, 0).await;
    let mut replica = Replica::start(&server).await;
    let first = replica.presents("the first").await;
    let second = replica.presents("renewed in time").await;
    assert!(
        Timestamp::now() < first.validity().not_after,
        "before the first was over"
    );
    replica.becomes(true).await;

    server.signal("-STOP").await;
    replica.becomes(false).await;
    assert!(
        Timestamp::now() > second.validity().not_after,
        "ready while it was valid"
    );
    assert!(replica.presented.try_recv().is_err(), "nothing else is presented");
    let trouble = heard(&mut replica.trouble).await;
    assert_eq!(trouble.reason, "CertificateIssuanceFailure");
    server.signal("-CONT").await;
    replica.presents("after it hung").await;
    replica.becomes(true).await;

    let port = server.end().await;
    replica.becomes(false).await;
    let _server = Server::start(&program, &ca, port).await;
    replica.presents("after it was gone").await;
    replica.becomes(true).await;
}

#[tokio::test]
async fn another_root_costs_readiness_and_is_never_taken() {
    let Some(program) = program() else { return };
    let ca = ca();
    let server = Server::start(&program, &ca, 0).await;
    let mut replica = Replica::start(&server).await;
    replica.presents("the first").await;
    replica.becomes(true).await;
    let roots = replica.issuer.roots();

    let port = server.end().await;
    let other = Server::start(&program, &super::ca(), port).await;
    let told = heard(&mut replica.root_problems).await;
    assert!(told.contains("not the root in use"), "{told}");
    replica.becomes(false).await;
    let trouble = heard(&mut replica.trouble).await;
    assert!(trouble.message.contains("ads"), "{trouble:?}");
    other.end().await;
    let presented = replica.presented.try_recv();
    assert!(presented.is_err(), "signed by another root");
    assert_eq!(replica.issuer.roots(), roots);

    let _server = Server::start(&program, &ca, port).await;
    replica.presents("after it came back").await;
    replica.becomes(true).await;
    assert_eq!(replica.issuer.roots(), roots);
}

/// Such a Vault, told to cut certificates to its CA's end, hands out what is over.
#[tokio::test]
async fn a_root_that_ends_while_it_is_used_costs_readiness_and_what_it_signs_is_not_taken() {
    let Some(program) = program() else { return };
    let server = Server::start(&program, &ca_over_in(15), 0).await;
    let cut = json!({"leaf_not_after_behavior": "truncate"});
    server.write("pki/issuer/default", cut).await;
    let mut replica = Replica::start(&server).await;
    let last = replica.presents("while the root was good").await;
    replica.becomes(true).await;
    let end = replica.issuer.roots().roots()[0].validity().not_after;
    assert!(last.validity().not_after <= end);

    replica.becomes(false).await;
    assert!(Timestamp::now() > end, "ready while it was valid");
    let refused = replica.issuer.issue(&ads(600)).await.unwrap_err();
    assert!(matches!(&refused, IssueError::Answer(_)), "{refused}");
    assert!(refused.to_string().contains("not valid now"), "{refused}");
    let told = heard(&mut replica.root_problems).await;
    assert!(told.contains("expired"), "{told}");
    while let Ok(leaf) = replica.presented.try_recv() {
        assert!(leaf.validity().not_after <= end);
    }
}
