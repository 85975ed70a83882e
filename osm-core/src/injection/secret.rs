//! The Secret a sidecar starts from.
//!
//! Invariant: a Secret that exists under the derived name is used only if everything in it that can be checked is what
//! this request would have written; anything else is somebody else's.

use std::{collections::BTreeMap, sync::LazyLock};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::secret_name;
use crate::{
    api::labels::{APP_INSTANCE, APP_NAME, APP_NAME_VALUE, APP_VERSION, PROXY_UUID},
    envoy::bootstrap::{
        BOOTSTRAP, CERTIFICATE, CERTIFICATE_SECRET, DIRECTORY, KEY, ROOT, VALIDATION_SECRET,
        certificate_secret, validation_secret,
    },
    identity::ProxyIdentity,
};

/// Annotation: the service account in the certificate.
const SERVICE_ACCOUNT: &str = "openservicemesh.io/service-account";
/// Annotation: uid of the admission request the Secret was made for.
const REQUEST: &str = "openservicemesh.io/admission-request";
/// Annotation: when the certificate expires, RFC 3339.
pub(super) const NOT_AFTER: &str = "openservicemesh.io/certificate-not-after";
/// Annotation: tag of the roots in the Secret, see [`trust_bundle_tag`].
pub(super) const TRUST_BUNDLE: &str = "openservicemesh.io/trust-bundle";

/// The files that tell Envoy where the certificates are: the same in every pod.
static CERTIFICATE_FILE: LazyLock<String> = LazyLock::new(|| certificate_secret(DIRECTORY));
static VALIDATION_FILE: LazyLock<String> = LazyLock::new(|| validation_secret(DIRECTORY));

/// What a bootstrap Secret is made of.
#[derive(Clone, Copy)]
pub struct BootstrapSecret<'a> {
    /// The proxy.
    pub proxy: &'a ProxyIdentity,
    /// The mesh's name.
    pub mesh_name: &'a str,
    /// The control plane's version.
    pub version: &'a str,
    /// Uid of the admission request.
    pub request_uid: &'a str,
    /// The bootstrap configuration.
    pub bootstrap: &'a str,
    /// The proxy's xDS client certificate with its chain, PEM.
    pub certificate: &'a str,
    /// Its key, PEM.
    pub key: &'a str,
    /// The mesh's roots, PEM.
    pub roots: &'a str,
    /// The fingerprint of the root that signed the certificate, if there is more than one root; else empty.
    pub signer: &'a str,
    /// When the certificate expires.
    pub not_after: Timestamp,
}

/// A Secret stands under the name a pod's own would have, and is not the pod's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Secret {namespace}/{name} exists and is not this pod's ({difference}): delete it and create the pod again"
)]
pub struct ForeignSecret {
    namespace: String,
    name: String,
    difference: &'static str,
}

/// What tells two bundles of roots apart, short enough for an annotation; with more than one root also which of them
/// signs (`signer`, empty while there is only one): a certificate of another one is to be renewed.
pub fn trust_bundle_tag(roots: &str, signer: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(roots.as_bytes()).update(signer.as_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The service account that a bootstrap Secret was made for.
pub fn bootstrap_account(secret: &Secret) -> Option<&str> {
    annotation(secret, SERVICE_ACCOUNT).map(String::as_str)
}

impl BootstrapSecret<'_> {
    /// The Secret, to be created.
    pub fn build(&self) -> Secret {
        let own = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Some(pairs.collect::<BTreeMap<String, String>>())
        };
        let files = [
            (BOOTSTRAP, self.bootstrap),
            (CERTIFICATE_SECRET, CERTIFICATE_FILE.as_str()),
            (VALIDATION_SECRET, VALIDATION_FILE.as_str()),
        ];
        let data = files.map(owned).into_iter().chain(self.material()).collect();
        Secret {
            metadata: ObjectMeta {
                name: Some(secret_name(self.proxy.uuid)),
                namespace: Some(self.proxy.service.namespace.to_string()),
                labels: own(&[
                    (APP_NAME, APP_NAME_VALUE),
                    (APP_INSTANCE, self.mesh_name),
                    (APP_VERSION, self.version),
                    (PROXY_UUID, &self.proxy.uuid.to_string()),
                ]),
                annotations: own(&[
                    (SERVICE_ACCOUNT, &self.proxy.service.name),
                    (REQUEST, self.request_uid),
                    (NOT_AFTER, &self.not_after.to_string()),
                    (TRUST_BUNDLE, &trust_bundle_tag(self.roots, self.signer)),
                ]),
                ..Default::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(data),
            ..Default::default()
        }
    }

    /// The keys that a renewal replaces.
    fn material(&self) -> [(String, ByteString); 3] {
        [
            (ROOT, self.roots),
            (CERTIFICATE, self.certificate),
            (KEY, self.key),
        ]
        .map(owned)
    }

    /// Puts this certificate into a Secret that exists; all else in it, its `resourceVersion` above all, stays.
    pub fn renew(&self, existing: &mut Secret) {
        existing.data.get_or_insert_default().extend(self.material());
        existing.metadata.annotations.get_or_insert_default().extend([
            (NOT_AFTER.to_owned(), self.not_after.to_string()),
            (TRUST_BUNDLE.to_owned(), trust_bundle_tag(self.roots, self.signer)),
        ]);
    }

    /// Checks a Secret that was there before: whether an earlier or concurrent delivery of the same request wrote it.
    ///
    /// # Errors
    /// [`ForeignSecret`] if it did not.
    pub fn recognise(&self, existing: &Secret) -> Result<(), ForeignSecret> {
        let expected = self.build();
        let same_label = |key| label(existing, key) == label(&expected, key);
        let same_annotation = |key| annotation(existing, key) == annotation(&expected, key);
        let same_file = |name| file(existing, name) == file(&expected, name);
        let difference = if ![APP_NAME, APP_INSTANCE, PROXY_UUID].into_iter().all(same_label) {
            "its labels are not this mesh's"
        } else if !same_annotation(REQUEST) || !same_annotation(SERVICE_ACCOUNT) {
            "it was made for another request or service account"
        } else if ![BOOTSTRAP, CERTIFICATE_SECRET, VALIDATION_SECRET]
            .into_iter()
            .all(same_file)
        {
            "its configuration is another"
        } else if !same_file(ROOT) {
            "its root is not the mesh's"
        } else if !self.names_proxy(existing) || file(existing, KEY).is_none_or(<[u8]>::is_empty) {
            "its certificate is not this proxy's"
        } else {
            return Ok(());
        };
        Err(ForeignSecret {
            namespace: self.proxy.service.namespace.to_string(),
            name: secret_name(self.proxy.uuid),
            difference,
        })
    }

    /// Whether the Secret's certificate has the subject of the one we would have put there.
    fn names_proxy(&self, existing: &Secret) -> bool {
        let ours = common_name(self.certificate.as_bytes());
        ours.is_some() && ours == file(existing, CERTIFICATE).and_then(common_name)
    }
}

fn owned((name, content): (&str, &str)) -> (String, ByteString) {
    (name.to_owned(), ByteString(content.as_bytes().to_vec()))
}

fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .to_owned();
    Some(name)
}

fn label<'a>(secret: &'a Secret, key: &str) -> Option<&'a String> {
    secret.metadata.labels.as_ref()?.get(key)
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a String> {
    secret.metadata.annotations.as_ref()?.get(key)
}

fn file<'a>(secret: &'a Secret, name: &str) -> Option<&'a [u8]> {
    Some(&secret.data.as_ref()?.get(name)?.0)
}
