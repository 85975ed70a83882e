//! TLS towards peers: certificates and roots that change while the server runs.
//!
//! Owns rustls' configuration. Invariants: a new certificate serves the next handshake without a restart; a client is
//! verified against the roots of this moment, never resumed from a session that older roots had verified; one
//! provider, aws-lc-rs, serves the whole process.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use osm_core::certificate::{Certificate, TrustBundle};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::issuer::Leaf;

/// ALPN's name of HTTP/2.
pub(crate) const H2: &[u8] = b"h2";
/// ALPN's name of HTTP/1.1.
const HTTP1: &[u8] = b"http/1.1";

/// Why TLS cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The leaf's chain or key does not serve.
    #[error("the certificate cannot be used for TLS: {0}")]
    Certificate(#[source] Error),
    /// The roots do not serve.
    #[error("the trusted roots cannot be used for TLS: {0}")]
    Roots(String),
}

/// The process's TLS provider; also made the default of libraries that ask for one (kube).
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let install = || {
        // Fails when there is one already: then it is the same one, installed by a test or a library.
        let _ = aws_lc_rs::default_provider().install_default();
        Arc::new(aws_lc_rs::default_provider())
    };
    PROVIDER.get_or_init(install).clone()
}

/// The certificate a server presents, replaceable while it serves. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct ServerCertificate {
    current: Arc<ArcSwapOption<CertifiedKey>>,
}

impl ServerCertificate {
    /// No certificate yet: handshakes fail until [`ServerCertificate::set`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Presents `leaf` from the next handshake on.
    ///
    /// # Errors
    /// [`TlsError::Certificate`] when chain and key do not belong together; the old one stays.
    pub fn set(&self, leaf: &Leaf) -> Result<(), TlsError> {
        let chain = leaf
            .chain_der()
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect();
        let key =
            CertifiedKey::from_der(chain, leaf.key_der(), &provider()).map_err(TlsError::Certificate)?;
        self.current.store(Some(Arc::new(key)));
        Ok(())
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCertificate")
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// The roots that client certificates must chain to, replaceable while the server runs. Cheap to clone; all clones
/// are one.
#[derive(Clone)]
pub struct ClientRoots {
    verifier: Arc<ArcSwap<Option<Arc<dyn ClientCertVerifier>>>>,
    changed: watch::Sender<()>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Default for ClientRoots {
    fn default() -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self {
            verifier: Arc::new(ArcSwap::from_pointee(None)),
            changed: watch::Sender::new(()),
            algorithms,
        }
    }
}

impl ClientRoots {
    /// No roots yet: every client is refused until [`ClientRoots::set`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Verifies clients against `roots` from the next handshake on. An empty bundle refuses everyone.
    ///
    /// # Errors
    /// [`TlsError::Roots`]; the old roots stay.
    pub fn set(&self, roots: &TrustBundle) -> Result<(), TlsError> {
        if roots.is_empty() {
            self.put(None);
            return Ok(());
        }
        let mut store = RootCertStore::empty();
        for root in roots.roots() {
            store
                .add(root.der().to_vec().into())
                .map_err(|error| TlsError::Roots(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| TlsError::Roots(error.to_string()))?;
        self.put(Some(verifier));
        Ok(())
    }

    fn put(&self, verifier: Option<Arc<dyn ClientCertVerifier>>) {
        self.verifier.store(Arc::new(verifier));
        self.changed.send_replace(());
    }

    /// Whether a client with this certificate chain, leaf first, would be let in now.
    ///
    /// # Errors
    /// Why not: it has expired, or its root is not trusted.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.verify_client_cert(leaf, intermediates, UnixTime::now())
            .map(drop)
    }

    /// Changes when the roots do, from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// How long until the first certificate of a chain expires; nothing if one cannot be read.
pub(crate) fn time_left(chain: &[CertificateDer<'_>]) -> Duration {
    let now = UnixTime::now().as_secs();
    let left = |certificate: &CertificateDer<'_>| {
        let read = Certificate::from_der(certificate).ok()?;
        let end = u64::try_from(read.validity.not_after.as_second()).ok()?;
        // It is good for all of its last second.
        Some(Duration::from_secs((end + 1).saturating_sub(now)))
    };
    let first = chain
        .iter()
        .map(|certificate| left(certificate).unwrap_or_default())
        .min();
    first.unwrap_or_default()
}

impl fmt::Debug for ClientRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientRoots")
    }
}

impl ClientCertVerifier for ClientRoots {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: the roots may change during the handshake, and our clients have one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match &**self.verifier.load() {
            Some(verifier) => verifier.verify_client_cert(leaf, intermediates, now),
            None => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// TLS 1.2 and 1.3 for HTTP/2 and HTTP/1.1, clients unknown: the webhooks, which the API server calls.
///
/// # Errors
/// [`TlsError`] when the provider lacks these protocols.
pub fn webhook(certificate: &ServerCertificate) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate.clone()));
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    Ok(Arc::new(config))
}

/// TLS 1.2 and 1.3 for HTTP/2 only, with a client certificate demanded: ADS.
///
/// Sessions are not resumed: each connection proves itself to the roots of that moment.
///
/// # Errors
/// [`TlsError`] when the provider lacks these protocols.
pub fn ads(certificate: &ServerCertificate, clients: &ClientRoots) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(Arc::new(clients.clone()))
        .with_cert_resolver(Arc::new(certificate.clone()));
    config.alpn_protocols = vec![H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
