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
    time::Duration,
};

use anyhow::{Context, Result};
use osm_core::certificate::{BOOTSTRAP_LIFETIME, Profile};
use osm_proto::envoy::config::core::v3::Node;
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
    sidecar::{Sidecar, Variant},
    tally::Tally,
};

/// Who a fake Envoy is.
pub(crate) struct Introduction {
    /// What its certificate says.
    pub(crate) profile: Profile,
    /// What its first request on each stream says of it. Ours goes by the certificate alone and is told nothing.
    pub(crate) node: Option<Node>,
}

/// Where fake Envoys connect to.
pub(crate) struct Contact {
    /// Any of these.
    pub(crate) servers: Vec<SocketAddr>,
    /// The name that its certificate must have.
    pub(crate) server_name: String,
    /// How often connections are pinged.
    pub(crate) ping: Duration,
    /// Whether the client's kernel watches connections, as our bootstrap says.
    pub(crate) watched: bool,
}

/// Fake Envoys, by number.
pub(crate) struct Fleet {
    modes: Option<Vec<watch::Sender<Mode>>>,
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Makes a fake Envoy of each introduction, with a certificate of `authority`. None connects yet; when it does, it is
    /// to `contact`.
    pub(crate) fn start(
        introductions: Vec<Introduction>,
        authority: &Authority,
        contact: &Contact,
        variant: Variant,
        threads: usize,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.root().der().to_vec().into())?;
        let roots = Arc::new(roots);
        let tally = Arc::new(Tally::new(introductions.len(), contact.servers.len()));
        let mut modes = Vec::with_capacity(introductions.len());
        let mut crews: Vec<Vec<_>> = (0..threads.max(1)).map(|_| Vec::new()).collect();
        let crew_count = crews.len();
        for (number, introduction) in introductions.into_iter().enumerate() {
            let (mode, told) = watch::channel(Mode::OFF);
            modes.push(mode);
            let tls = Arc::new(client_config(introduction.profile, authority, roots.clone())?);
            crews[number % crew_count].push((number, tls, introduction.node, told));
        }
        let server_name = ServerName::try_from(contact.server_name.clone())?;
        let mut running = Vec::new();
        for crew in crews {
            let (tally, server_name) = (tally.clone(), server_name.clone());
            let (ping, watched) = (contact.ping, contact.watched);
            let servers = contact.servers.clone();
            let work = move || {
                let shared = Rc::new(Shared {
                    library: Library::default().into(),
                    tally,
                    servers,
                    server_name,
                    ping,
                    watched,
                    variant,
                });
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, async {
                        let mut all = tokio::task::JoinSet::new();
                        for (number, tls, node, told) in crew {
                            let sidecar = Sidecar::new(variant, node);
                            all.spawn_local(live(number, tls, sidecar, told, shared.clone()));
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

fn client_config(profile: Profile, authority: &Authority, roots: Arc<RootCertStore>) -> Result<ClientConfig> {
    let request = LeafRequest {
        profile,
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
