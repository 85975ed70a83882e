//! Thousands of fake Envoys in one process.
//!
//! Owns their threads: a single-threaded runtime each, so that fake Envoys share names without locks and leave the other
//! cores to the server. Must not measure: that is done from outside, on the [`Tally`].

use std::{
    net::SocketAddr,
    ops::Range,
    rc::Rc,
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use anyhow::{Context, Result};
use osm_core::{
    api::names,
    certificate::{BOOTSTRAP_LIFETIME, Profile},
    identity::{ProxyIdentity, TrustDomain},
};
use osm_runtime::{
    issuer::{Authority, KeyKind, LeafRequest},
    tls,
};
use rustls::{CipherSuite, ClientConfig, RootCertStore, client::Resumption, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::sync::watch;

use crate::{
    connection::{Mode, Shared, live},
    library::Library,
    sidecar::Variant,
    tally::Tally,
};

/// Fake Envoys, by number.
pub(crate) struct Fleet {
    modes: Option<Vec<watch::Sender<Mode>>>,
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Makes a fake Envoy of each identity, with a certificate of `authority`. None connects yet; when it does, it is to
    /// any of `servers`.
    pub(crate) fn start(
        identities: &[ProxyIdentity],
        authority: &Authority,
        servers: &[SocketAddr],
        variant: Variant,
        threads: usize,
    ) -> Result<Self> {
        let trust_domain = TrustDomain::default();
        let mut roots = RootCertStore::empty();
        roots.add(authority.root().der().to_vec().into())?;
        let roots = Arc::new(roots);
        let tally = Arc::new(Tally::new(identities.len(), servers.len()));
        let mut modes = Vec::with_capacity(identities.len());
        let mut crews: Vec<Vec<_>> = (0..threads.max(1)).map(|_| Vec::new()).collect();
        let crew_count = crews.len();
        for (number, identity) in identities.iter().enumerate() {
            let (mode, told) = watch::channel(Mode::OFF);
            modes.push(mode);
            let tls = Arc::new(client_config(identity, authority, roots.clone(), &trust_domain)?);
            crews[number % crew_count].push((number, tls, told));
        }
        let server_name = ServerName::try_from(names::ads_server(&trust_domain))?;
        let mut running = Vec::new();
        for crew in crews {
            let (tally, servers, server_name) = (tally.clone(), servers.to_vec(), server_name.clone());
            let work = move || {
                let shared = Rc::new(Shared {
                    library: Library::default().into(),
                    tally,
                    servers,
                    server_name,
                    variant,
                });
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, async {
                        let mut all = tokio::task::JoinSet::new();
                        for (number, tls, told) in crew {
                            all.spawn_local(live(number, tls, told, shared.clone()));
                        }
                        all.join_all().await;
                    }),
                    Err(error) => eprintln!("no runtime for fake Envoys: {error}"),
                }
            };
            running.push(
                Builder::new()
                    .name("envoys".into())
                    .spawn(work)
                    .context("no thread")?,
            );
        }
        Ok(Self {
            modes: Some(modes),
            tally,
            threads: running,
        })
    }

    /// What they count.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Tells some of them what to do.
    pub(crate) fn order(&self, which: Range<usize>, change: impl Fn(&mut Mode)) {
        for mode in self.modes.iter().flatten().take(which.end).skip(which.start) {
            mode.send_if_modified(|mode| {
                let before = *mode;
                change(mode);
                *mode != before
            });
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.modes = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What Envoy's TLS offers where processors have AES: 128 bits first. The server takes the client's first choice.
fn offers() -> CryptoProvider {
    let mut provider = CryptoProvider::clone(&tls::provider());
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn client_config(
    identity: &ProxyIdentity,
    authority: &Authority,
    roots: Arc<RootCertStore>,
    trust_domain: &TrustDomain,
) -> Result<ClientConfig> {
    let request = LeafRequest {
        profile: Profile::proxy(identity, trust_domain),
        lifetime: BOOTSTRAP_LIFETIME,
        key: KeyKind::P256,
    };
    let leaf = authority.sign(&request, jiff::Timestamp::now())?;
    let chain = leaf
        .chain_der()
        .iter()
        .cloned()
        .map(CertificateDer::from)
        .collect();
    let mut config = ClientConfig::builder_with_provider(offers().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, leaf.key_der())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A controller that is new does not know the sessions of the old one: every handshake is a full one.
    config.resumption = Resumption::disabled();
    Ok(config)
}
