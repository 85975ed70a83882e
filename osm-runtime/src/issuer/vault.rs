//! HashiCorp Vault's PKI secrets engine, mounted at `pki` as with the original.
//!
//! Owns three REST calls: `GET pki/ca/pem`, `POST pki/issue/<role>`, `POST auth/token/renew-self`. Invariants: every
//! call is bounded in time and size; the expiry of a certificate is read from it, not assumed; the token is in no log,
//! error or `Debug` output, and is read again from its Secret when Vault refuses it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use osm_core::certificate::{Root, TrustBundle};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{IssueError, Leaf, LeafRequest, RootState, gate::Gate};
use crate::{backoff::jittered, client, tls};

/// Vault's own port.
pub(super) const PORT: u16 = 8200;
/// Longest time for one call.
const LIMIT: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;
/// How often the token is renewed; Vault's default lease is 32 days, the shortest sensible one an hour.
const RENEW_TOKEN: Duration = Duration::from_secs(15 * 60);
/// The system's trusted CAs, for `https` unless another file is named.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where the token is.
#[derive(Clone)]
pub enum Token {
    /// Given as a flag.
    Literal(Zeroizing<String>),
    /// In a Secret.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key of the token in it.
        key: String,
    },
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("Literal(..)"),
            Self::Secret { namespace, name, key } => write!(f, "Secret({namespace}/{name}, {key})"),
        }
    }
}

/// How to reach Vault.
#[derive(Clone, Debug)]
pub struct VaultOptions {
    /// `http://` or `https://`, host and port.
    pub address: Uri,
    /// The role certificates are issued under.
    pub role: String,
    /// The token.
    pub token: Token,
    /// A PEM file of the CAs that may have signed Vault's own certificate; the system's when there is none.
    pub authorities: Option<PathBuf>,
}

/// A Vault server.
pub(super) struct Vault {
    client: Option<kube::Client>,
    options: VaultOptions,
    tls: Option<Arc<ClientConfig>>,
    token: Mutex<Option<Zeroizing<String>>>,
    gate: Gate,
    roots: TrustBundle,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Issued {
    certificate: String,
    private_key: String,
    #[serde(default)]
    ca_chain: Vec<String>,
}

impl Vault {
    /// Learns the root. `client` is needed when the token is in a Secret.
    pub(super) async fn open(
        client: Option<kube::Client>,
        options: VaultOptions,
    ) -> Result<Self, IssueError> {
        let tls = match options.address.scheme_str() {
            Some("http") => None,
            Some("https") => Some(client_config(options.authorities.as_deref())?),
            _ => {
                return Err(IssueError::Provider(
                    "Vault's address must begin with http:// or https://".into(),
                ));
            }
        };
        let gate = Gate::new(Duration::from_secs(2), Duration::from_secs(30));
        let mut vault = Self {
            client,
            options,
            tls,
            token: Mutex::default(),
            gate,
            roots: TrustBundle::default(),
        };
        let root = vault.root().await?;
        root.check_validity(jiff::Timestamp::now())?;
        vault.roots = TrustBundle::new([root]);
        Ok(vault)
    }

    pub(super) fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    /// Vault's issuing CA, which is the root of the mesh.
    async fn root(&self) -> Result<Root, IssueError> {
        let pem = self
            .gate
            .pass(LIMIT, self.call(Method::GET, "pki/ca/pem", None, None))
            .await?;
        let pem =
            String::from_utf8(pem.to_vec()).map_err(|_| IssueError::Answer("the CA is not PEM".into()))?;
        Ok(Root::from_pem(&pem)?)
    }

    pub(super) async fn issue(&self, request: &LeafRequest) -> Result<Leaf, IssueError> {
        let issued = self.gate.pass(LIMIT, self.issue_once(request)).await?;
        // Intermediates, without the root itself: peers have that.
        let mut chain = issued.certificate;
        for intermediate in issued.ca_chain {
            let is_root = Root::from_pem(&intermediate).is_ok_and(|root| self.roots.roots().contains(&root));
            if !is_root {
                chain.push('\n');
                chain.push_str(&intermediate);
            }
        }
        Leaf::from_pem(&chain, &Zeroizing::new(issued.private_key))
    }

    async fn issue_once(&self, request: &LeafRequest) -> Result<Issued, IssueError> {
        let token = self.token().await?;
        match self.ask(request, true, &token).await {
            // A role without `allowed_uri_sans`, as the original's documentation had it: the names suffice.
            Err(IssueError::Answer(message)) if message.contains("URI") => {
                self.ask(request, false, &token).await
            }
            outcome => outcome,
        }
    }

    async fn ask(&self, request: &LeafRequest, uris: bool, token: &str) -> Result<Issued, IssueError> {
        let profile = &request.profile;
        let uri_sans = if uris {
            profile.uris.join(",")
        } else {
            String::new()
        };
        // The kind of the key is the role's choice: `request.key` does not enter.
        let body = json!({
            "common_name": profile.common_name,
            "alt_names": profile.dns_names.join(","),
            "uri_sans": uri_sans,
            "exclude_cn_from_sans": true,
            "ttl": format!("{}s", request.lifetime.as_secs().max(1)),
            "format": "pem",
            "private_key_format": "pkcs8",
        });
        let path = format!("pki/issue/{}", self.options.role);
        let answer = self.call(Method::POST, &path, Some(&body), Some(token)).await?;
        let answer: Answer<Issued> = serde_json::from_slice(&answer)
            .map_err(|error| IssueError::Answer(format!("unexpected JSON at column {}", error.column())))?;
        Ok(answer.data)
    }

    /// Compares the root in use with Vault's.
    pub(super) async fn check(&self) -> RootState {
        match self.root().await {
            Ok(root) if self.roots.roots().contains(&root) => RootState::Same,
            Ok(_) => RootState::Differs("Vault's CA is not the root in use: this needs a rotation".into()),
            Err(IssueError::Root(error)) => RootState::Differs(format!("Vault's CA is unfit: {error}")),
            Err(error) => RootState::Unknown(error.to_string()),
        }
    }

    async fn renew_token(&self) {
        let renew = async {
            let token = self.token().await?;
            self.call(
                Method::POST,
                "auth/token/renew-self",
                Some(&json!({})),
                Some(&token),
            )
            .await
        };
        // Not through the gate: a token that may not renew itself says nothing of Vault's health.
        match tokio::time::timeout(LIMIT, renew).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the Vault token was not renewed"),
            Err(_) => tracing::debug!("the Vault token was not renewed in time"),
        }
    }

    async fn token(&self) -> Result<Zeroizing<String>, IssueError> {
        let known = self.token.lock().clone();
        if let Some(token) = known {
            return Ok(token);
        }
        let unreadable =
            |what: &dyn fmt::Display| IssueError::Provider(format!("the Vault token cannot be read: {what}"));
        let token = match (&self.options.token, &self.client) {
            (Token::Literal(token), _) => token.clone(),
            (Token::Secret { .. }, None) => return Err(unreadable(&"there is no Kubernetes client")),
            (Token::Secret { namespace, name, key }, Some(client)) => {
                let api = Api::<Secret>::namespaced(client.clone(), namespace);
                let secret = client::within(client::CALL, api.get(name))
                    .await
                    .map_err(|error| unreadable(&error))?;
                let bytes = secret.data.and_then(|mut data| data.remove(key));
                let bytes =
                    bytes.ok_or_else(|| unreadable(&format!("the Secret {name} has no key {key}")))?;
                let text = String::from_utf8(bytes.0).map_err(|_| unreadable(&"it is not text"))?;
                Zeroizing::new(text.trim().to_owned())
            }
        };
        *self.token.lock() = Some(token.clone());
        Ok(token)
    }

    /// One call. Answers of 400 and 404 concern the request; all other failures, Vault.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        token: Option<&str>,
    ) -> Result<Bytes, IssueError> {
        let provider = |error: &dyn fmt::Display| IssueError::Provider(format!("Vault: {error}"));
        let address = &self.options.address;
        let host = address
            .host()
            .ok_or_else(|| provider(&"its address has no host"))?;
        let port = address.port_u16().unwrap_or(PORT);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header("host", format!("{host}:{port}"))
            .header("x-vault-request", "true");
        if let Some(token) = token {
            let mut value =
                http::HeaderValue::from_str(token).map_err(|_| provider(&"the token is malformed"))?;
            value.set_sensitive(true);
            request = request.header("x-vault-token", value);
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| provider(&error))?;
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare_host, port))
            .await
            .map_err(|error| provider(&error))?;
        let (status, answer) = match &self.tls {
            None => exchange(stream, request).await,
            Some(config) => {
                let name = ServerName::try_from(bare_host.to_owned()).map_err(|error| provider(&error))?;
                let connector = TlsConnector::from(config.clone());
                exchange(
                    connector
                        .connect(name, stream)
                        .await
                        .map_err(|error| provider(&error))?,
                    request,
                )
                .await
            }
        }
        .map_err(|error| provider(&error))?;
        if status.is_success() {
            return Ok(answer);
        }
        if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
            // Perhaps it was replaced: it is read again next time.
            *self.token.lock() = None;
        }
        let message = errors(&answer);
        match status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
                Err(IssueError::Answer(format!("{status}: {message}")))
            }
            _ => Err(provider(&format!("{status}: {message}"))),
        }
    }
}

/// Renews the token for as long as the issuer lives.
pub(super) async fn keep_token(vault: Weak<Vault>) {
    loop {
        tokio::time::sleep(jittered(RENEW_TOKEN, 0.2)).await;
        let Some(vault) = vault.upgrade() else { return };
        vault.renew_token().await;
    }
}

/// The messages in a failed answer.
fn errors(answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let errors: Option<Errors> = serde_json::from_slice(answer).ok();
    let mut text = errors.map(|errors| errors.errors.join("; ")).unwrap_or_default();
    text.truncate(text.floor_char_boundary(512));
    text
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), tower::BoxError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let read = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await?
            .to_bytes();
        Ok((status, body))
    };
    tokio::pin!(read);
    tokio::select! {
        outcome = &mut read => outcome,
        ended = connection => {
            ended?;
            read.await
        }
    }
}

fn client_config(file: Option<&Path>) -> Result<Arc<ClientConfig>, IssueError> {
    let file = file.unwrap_or(Path::new(SYSTEM_ROOTS));
    let failed = |error: &dyn fmt::Display| {
        IssueError::Provider(format!(
            "the CAs that may vouch for Vault, {}: {error}",
            file.display()
        ))
    };
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let blocks = pem::parse_many(text).map_err(|error| failed(&error))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(blocks.into_iter().map(|block| block.into_contents().into()));
    if roots.is_empty() {
        return Err(failed(&"it holds no certificate"));
    }
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
