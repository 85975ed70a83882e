//! A TLS client that trusts everyone and tells what it was shown: the certificates as they are on the wire.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use osm_e2e::report::{Certificate, Handshake};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::seconds;

#[derive(Args)]
pub(crate) struct Options {
    /// Where to: `host:port`.
    address: String,
    /// The server name to ask for.
    #[arg(long, default_value = "localhost")]
    sni: String,
    /// An application protocol to offer; may be given several times.
    #[arg(long)]
    alpn: Vec<String>,
    /// Presents a certificate with this common name and DNS name, signed by itself.
    #[arg(long, conflicts_with = "chain")]
    forge: Option<String>,
    /// Presents this certificate, as PEM text.
    #[arg(long, requires = "key")]
    chain: Option<String>,
    /// Its private key, as PEM text.
    #[arg(long, requires = "chain")]
    key: Option<String>,
    /// Seconds to wait.
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<Handshake> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let witness = Arc::new(Witness {
        algorithms: provider.signature_verification_algorithms,
        seen: Mutex::new(Vec::new()),
    });
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Witness>::clone(&witness));
    let mut config = match own_certificate(&options)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
    };
    config.alpn_protocols = options
        .alpn
        .iter()
        .map(|name| name.clone().into_bytes())
        .collect();
    let name = ServerName::try_from(options.sni.clone()).context("--sni is not a host name")?;

    let mut handshake = Handshake::default();
    let attempt = async {
        let stream = TcpStream::connect(&options.address).await?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (_, connection) = stream.get_ref();
        handshake.version = connection
            .protocol_version()
            .map(|version| format!("{version:?}"));
        handshake.alpn = connection
            .alpn_protocol()
            .map(|protocol| String::from_utf8_lossy(protocol).into_owned());
        // In TLS 1.3 a server that refuses the client's certificate says so only after the client's handshake is done.
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut byte = [0];
        match stream.read(&mut byte).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    };
    let outcome: Result<std::io::Result<()>, _> = tokio::time::timeout(options.timeout, attempt).await;
    handshake.error = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("timeout: nothing in {:?}", options.timeout)),
    };
    let seen = witness.seen.lock().map(|seen| seen.clone()).unwrap_or_default();
    handshake.certificates = seen
        .iter()
        .map(|der| describe(der))
        .collect::<anyhow::Result<_>>()?;
    Ok(handshake)
}

/// What the client shows of itself, if anything.
fn own_certificate(
    options: &Options,
) -> anyhow::Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
    if let (Some(chain), Some(key)) = (&options.chain, &options.key) {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
        return Ok(Some((chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)));
    }
    let Some(name) = &options.forge else {
        return Ok(None);
    };
    let key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(vec![name.clone()])?;
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let certificate = parameters.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Some((vec![certificate.der().clone()], key)))
}

fn describe(der: &CertificateDer<'_>) -> anyhow::Result<Certificate> {
    let (_, certificate) =
        X509Certificate::from_der(der).context("the server's certificate cannot be read")?;
    let common_name = |name: &x509_parser::x509::X509Name<'_>| {
        name.iter_common_name()
            .find_map(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let mut names = Vec::new();
    if let Some(alternatives) = certificate
        .subject_alternative_name()
        .context("alternative names")?
    {
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::URI(name) => names.push((*name).to_owned()),
                _ => {}
            }
        }
    }
    Ok(Certificate {
        common_name: common_name(certificate.subject()),
        issuer: common_name(certificate.issuer()),
        names,
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// Accepts any certificate and remembers it. Signatures are checked, so that the server proves it has the key.
#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut seen) = self.seen.lock() {
            seen.push(end_entity.clone().into_owned());
            seen.extend(
                intermediates
                    .iter()
                    .map(|certificate| certificate.clone().into_owned()),
            );
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
