//! cert-manager: certificates by CertificateRequest objects.
//!
//! Owns one request's life: made with a generated name, waited for, deleted whatever came of it. Invariants: the
//! private key never leaves the process; a request is deleted also when waiting for it failed or was given up, and when
//! the pod that waited is gone (Kubernetes' garbage collector does that); the root is what the issuer reports in `status.ca`, and a different one later is never taken over silently.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams},
};
use osm_core::certificate::{KeyForm, Profile, Root, TrustBundle, Usage, chain_from_pem};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    IssueError, Leaf, LeafRequest, RootState,
    authority::{generate_key, leaf_params, signing},
    gate::Gate,
};
use crate::{
    backoff::{Backoff, jittered},
    client,
};

/// Longest time for a certificate, all calls included: the original's.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for cert-manager's part in it.
const PATIENCE: Duration = Duration::from_secs(45);
/// How often the issuer's CA is looked up when no certificate was needed meanwhile. It can be learned only by asking
/// for one.
const PROBE: Duration = Duration::from_secs(10 * 60);

/// Which issuer signs.
#[derive(Clone, Debug)]
pub struct CertManagerOptions {
    /// Where requests are made: the control plane's namespace.
    pub namespace: String,
    /// Name of the issuer.
    pub issuer: String,
    /// `Issuer` or `ClusterIssuer`.
    pub kind: String,
    /// Its API group, `cert-manager.io` unless it is another's.
    pub group: String,
    /// The pod that asks, with which its requests go; `None` outside a pod.
    pub owner: Option<OwnerReference>,
}

/// An issuer of cert-manager.
pub(super) struct CertManager {
    api: Api<DynamicObject>,
    resource: ApiResource,
    options: CertManagerOptions,
    gate: Gate,
    roots: TrustBundle,
    seen: Mutex<Seen>,
}

/// What the last answer said of the root.
struct Seen {
    state: RootState,
    /// When to ask again.
    next: Instant,
}

impl Seen {
    fn now(state: RootState) -> Self {
        let next = Instant::now() + jittered(PROBE, 0.3);
        Self { state, next }
    }
}

impl CertManager {
    /// Learns the root, by asking for a certificate that is thrown away.
    pub(super) async fn open(client: Client, options: CertManagerOptions) -> Result<Self, IssueError> {
        let resource = ApiResource {
            group: "cert-manager.io".into(),
            version: "v1".into(),
            api_version: "cert-manager.io/v1".into(),
            kind: "CertificateRequest".into(),
            plural: "certificaterequests".into(),
        };
        let api = Api::namespaced_with(client, &options.namespace, &resource);
        let gate = Gate::new(Duration::from_secs(1), Duration::from_secs(30));
        let mut issuer = Self {
            api,
            resource,
            options,
            gate,
            roots: TrustBundle::default(),
            seen: Mutex::new(Seen::now(RootState::Same)),
        };
        let root = issuer.probe().await?;
        root.check_validity(Timestamp::now())?;
        issuer.roots = TrustBundle::new([root]);
        Ok(issuer)
    }

    /// The issuer's CA, learned from a certificate that is thrown away.
    async fn probe(&self) -> Result<Root, IssueError> {
        let name = vec!["init-cert.openservicemesh.io".to_owned()];
        let profile = Profile::gateway(&name).ok_or_else(|| IssueError::Signing("no name".into()))?;
        let request = LeafRequest::new(profile, Duration::from_secs(3_600));
        let (_, root) = self.gate.pass(LIMIT, self.request(&request)).await?;
        Ok(root)
    }

    pub(super) fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    pub(super) async fn issue(&self, request: &LeafRequest) -> Result<Leaf, IssueError> {
        let (leaf, root) = self.gate.pass(LIMIT, self.request(request)).await?;
        self.compare(&root);
        Ok(leaf)
    }

    /// Compares the root in use with the issuer's: as of the last answer, or, when that is long ago or was another
    /// root, as of now.
    pub(super) async fn check(&self) -> RootState {
        let recent = {
            let seen = self.seen.lock();
            seen.state == RootState::Same && Instant::now() < seen.next
        };
        if recent {
            return RootState::Same;
        }
        match self.probe().await {
            Ok(root) => self.compare(&root),
            Err(IssueError::Root(error)) => RootState::Differs(format!("the issuer's CA is unfit: {error}")),
            Err(error) => RootState::Unknown(error.to_string()),
        }
    }

    fn compare(&self, root: &Root) -> RootState {
        let state = if self.roots.roots().contains(root) {
            RootState::Same
        } else {
            RootState::Differs("the issuer's CA is not the root in use: this needs a rotation".into())
        };
        *self.seen.lock() = Seen::now(state.clone());
        state
    }

    async fn request(&self, request: &LeafRequest) -> Result<(Leaf, Root), IssueError> {
        let key = generate_key(request.key)?;
        let mut params = leaf_params(&request.profile, request.key)?;
        // A signing request has none of these; usages are asked for in the object.
        params.serial_number = None;
        params.use_authority_key_identifier_extension = false;
        params.key_usages.clear();
        params.extended_key_usages.clear();
        let csr = params
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .map_err(signing)?;
        let made = client::within(
            client::CALL,
            self.api
                .create(&PostParams::default(), &self.object(request, &csr)),
        )
        .await
        .map_err(|error| failure(&error))?;
        let name = made.metadata.name.unwrap_or_default();
        let _cleanup = Cleanup {
            api: self.api.clone(),
            name: name.clone(),
        };
        let (certificate, ca) = self.wait(&name).await?;
        let chain = chain_from_pem(&certificate).map_err(|error| IssueError::Answer(error.to_string()))?;
        let root = Root::from_pem(&ca)?;
        // Intermediates, without the root itself: peers have that.
        let chain = chain
            .into_iter()
            .filter(|der| der.as_slice() != root.der())
            .collect();
        let key = Zeroizing::new(key.serialize_der());
        let leaf = Leaf::new(chain, KeyForm::Pkcs8, key, Timestamp::now())?;
        Ok((leaf, root))
    }

    fn object(&self, request: &LeafRequest, csr: &str) -> DynamicObject {
        let CertManagerOptions {
            issuer,
            kind,
            group,
            owner,
            ..
        } = &self.options;
        let extended: &[&str] = match request.profile.usage {
            Usage::Client => &["client auth"],
            Usage::Server => &["server auth"],
            Usage::Both => &["server auth", "client auth"],
        };
        let usages: Vec<&str> = ["digital signature", "key encipherment"]
            .into_iter()
            .chain(extended.iter().copied())
            .collect();
        let mut object = DynamicObject::new("", &self.resource).data(json!({ "spec": {
            "duration": format!("{}s", request.lifetime.as_secs().max(1)),
            "isCA": false,
            "issuerRef": {"name": issuer, "kind": kind, "group": group},
            "request": STANDARD.encode(csr),
            "usages": usages,
        }}));
        object.metadata.name = None;
        object.metadata.generate_name = Some("osm-".into());
        object.metadata.owner_references = owner.clone().map(|owner| vec![owner]);
        object
    }

    /// The certificate chain and the CA, once they are there.
    async fn wait(&self, name: &str) -> Result<(String, String), IssueError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let end = Instant::now() + PATIENCE;
        let mut said = String::from("it has not looked at the request; is it running?");
        while Instant::now() < end {
            tokio::time::sleep(backoff.next_wait()).await;
            let object = match client::within(client::CALL, self.api.get(name)).await {
                Ok(object) => object,
                Err(error) if error.is_temporary() => continue,
                Err(error) => return Err(failure(&error)),
            };
            let status = &object.data["status"];
            if let Some(answer) = read_status(status)? {
                return Ok(answer);
            }
            if let Some(message) = pending(status) {
                said = message;
            }
        }
        let seconds = PATIENCE.as_secs();
        Err(IssueError::Provider(format!(
            "cert-manager has not signed within {seconds} seconds: {said}"
        )))
    }
}

/// Why a request is still open, as cert-manager puts it.
fn pending(status: &Value) -> Option<String> {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let ready = conditions.find(|condition| condition["type"] == "Ready")?;
    Some(bounded(ready["message"].as_str()?))
}

fn bounded(message: &str) -> String {
    message[..message.floor_char_boundary(512)].to_owned()
}

/// What a request's status says: nothing yet, the certificate chain and the CA, or that there will be none.
fn read_status(status: &Value) -> Result<Option<(String, String)>, IssueError> {
    let text = |field: &str| {
        let decoded = status[field].as_str().and_then(|text| STANDARD.decode(text).ok());
        decoded
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .unwrap_or_default()
    };
    for condition in status["conditions"].as_array().into_iter().flatten() {
        let is = |field: &str, value: &str| condition[field].as_str() == Some(value);
        let refused = is("type", "Denied") && is("status", "True")
            || is("type", "InvalidRequest") && is("status", "True");
        if refused || is("type", "Ready") && is("status", "False") && is("reason", "Failed") {
            let message = bounded(condition["message"].as_str().unwrap_or("no message"));
            return Err(IssueError::Answer(format!("cert-manager refused: {message}")));
        }
        if is("type", "Ready") && is("status", "True") {
            let (certificate, ca) = (text("certificate"), text("ca"));
            if ca.is_empty() {
                return Err(IssueError::Answer(
                    "cert-manager's issuer does not tell its CA (status.ca); use a CA, Vault or self-signed-root issuer".into(),
                ));
            }
            return Ok(Some((certificate, ca)));
        }
    }
    Ok(None)
}

fn failure(error: &client::ClientError) -> IssueError {
    let hint = if error.is_not_found() {
        "; is cert-manager installed?"
    } else {
        ""
    };
    IssueError::Provider(format!("cert-manager: {error}{hint}"))
}

/// Deletes a request when its waiter is done, or dropped half-way.
struct Cleanup {
    api: Api<DynamicObject>,
    name: String,
}

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cleanup({})", self.name)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let (api, name) = (self.api.clone(), std::mem::take(&mut self.name));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let params = DeleteParams::default();
            let delete = || api.delete(&name, &params);
            match client::retrying(client::CALL, delete).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => tracing::warn!(name, %error, "a CertificateRequest was not deleted"),
            }
        });
    }
}

#[cfg(test)]
#[path = "cert_manager_tests.rs"]
mod tests;
