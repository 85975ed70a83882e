//! A replica that starts while Vault is away, hangs, is unfit, or names another root than before.

use std::collections::BTreeMap;

use osm_core::{
    certificate::rotation::{Home, Objects},
    identity::TrustDomain,
};
use osm_runtime::{
    issuer::{Issuer, Provider, RootSecret, RootState},
    roots::{self, Delay, Setting},
};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        watch,
    },
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    SOON, ads, ca, ca_over_in,
    secrets::Secrets,
    server::{Server, options, program},
};

const SECRET: &str = "osm-ca-bundle";

/// What a replica does until it has a root.
struct Replica {
    opening: JoinHandle<Issuer>,
    told: UnboundedReceiver<(Delay, Instant)>,
}

impl Replica {
    fn start(secrets: &Secrets, port: u16) -> Self {
        let configured = Provider::Vault {
            options: options(port),
            memory: Some(RootSecret {
                namespace: "osm-system".into(),
                name: SECRET.into(),
                labels: BTreeMap::new(),
            }),
        };
        let setting = Setting {
            home: Home {
                namespace: "osm-system".into(),
                trust_domain: TrustDomain::default(),
                configured: configured.source(),
            },
            configured,
            labels: BTreeMap::new(),
            authorities: None,
        };
        let (tell, told) = unbounded_channel();
        let client = secrets.client();
        let opening = tokio::spawn(async move {
            let objects = watch::channel(Some(Objects::default())).1;
            let waiting = |delay| drop(tell.send((delay, Instant::now())));
            roots::open_at_last(client, setting, objects, waiting).await.0
        });
        Self { opening, told }
    }

    /// Waits until it says that it has no root, in these words, for this reason; returns when it said so.
    async fn says(&mut self, words: &str, reason: &str) -> Instant {
        let wait = async {
            loop {
                let (delay, at) = self.told.recv().await.expect("it is open");
                if let Delay::Failed(error) = delay
                    && error.to_string().contains(words)
                {
                    assert_eq!(error.reason(), reason, "{error}");
                    return at;
                }
            }
        };
        let said = timeout(SOON, wait).await;
        said.unwrap_or_else(|_| panic!("it never said {words:?}"))
    }

    async fn opened(self) -> Issuer {
        timeout(SOON, self.opening).await.expect("it waits on").unwrap()
    }
}

#[tokio::test]
async fn a_replica_waits_for_a_vault_that_is_away_hangs_or_is_over() {
    let Some(program) = program() else { return };
    let (ca, secrets) = (ca(), Secrets::default());
    // A port that was free a moment ago.
    let port = Server::start(&program, &ca, 0).await.end().await;
    let mut replica = Replica::start(&secrets, port);
    let first = replica.says("refused", "CertificateIssuanceFailure").await;
    replica.says("refused", "CertificateIssuanceFailure").await;
    let third = replica.says("refused", "CertificateIssuanceFailure").await;
    // Half of a second, then half of two, at least.
    assert!((third - first).as_millis() >= 1_500, "{:?}", third - first);

    let hung = Server::start(&program, &ca, port).await;
    hung.signal("-STOP").await;
    replica.says("15 seconds", "CertificateIssuanceFailure").await;
    hung.end().await;
    let expired = Server::start(&program, &ca_over_in(-60), port).await;
    replica.says("expired", "RootCertificateProblem").await;
    expired.end().await;
    assert!(secrets.get(SECRET).is_none(), "nothing unfit is remembered");

    let _server = Server::start(&program, &ca, port).await;
    let issuer = replica.opened().await;
    assert_eq!(issuer.roots().roots()[0].pem(), ca.certificate);
    issuer.issue(&ads(600)).await.unwrap();
    let secret = secrets.get(SECRET).expect("the root is remembered");
    assert!(secret["data"].get("private.key").is_none(), "{secret}");
}

#[tokio::test]
async fn a_replica_takes_no_other_root_than_the_first_ones() {
    let Some(program) = program() else { return };
    let (ca, secrets) = (ca(), Secrets::default());
    let server = Server::start(&program, &ca, 0).await;
    let first = Replica::start(&secrets, server.port).opened().await;
    let stored = secrets.get(SECRET);
    let port = server.end().await;

    let other = Server::start(&program, &super::ca(), port).await;
    let mut second = Replica::start(&secrets, port);
    let words = "not the one this mesh began with";
    second.says(words, "RootCertificateProblem").await;
    assert!(matches!(first.check().await, RootState::Differs(_)));
    let refused = first.issue(&ads(600)).await.unwrap_err();
    assert!(refused.to_string().contains("does not chain"), "{refused}");
    other.end().await;

    let _server = Server::start(&program, &ca, port).await;
    let second = second.opened().await;
    assert_eq!(second.roots(), first.roots());
    assert_eq!(secrets.get(SECRET), stored);
}
