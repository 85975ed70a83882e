//! Who a workload is: service accounts, proxies, and the trust domain their names live in.
//!
//! Owns the formats of certificate common names and principals. Invariant: a value of these types is well formed, so
//! that a name built from it can be parsed back to the same value; parsing never panics on hostile input.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A Kubernetes ServiceAccount: the identity every workload of the mesh acts under.
///
/// Ordered by namespace, then name. Displays as `<name>.<namespace>`, the original's spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceIdentity {
    /// Namespace of the service account.
    pub namespace: Arc<str>,
    /// Name of the service account; may contain dots (RFC 1123 subdomain).
    pub name: Arc<str>,
}

impl ServiceIdentity {
    /// An identity from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The common name and DNS name of its service certificates, and its principal in RBAC rules:
    /// `<name>.<namespace>.<trust domain>`.
    pub fn principal(&self, trust_domain: &TrustDomain) -> String {
        format!("{}.{}.{trust_domain}", self.name, self.namespace)
    }
}

impl fmt::Display for ServiceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// The DNS suffix of every name the mesh's CA signs, `cluster.local` unless configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The suffix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    /// Accepts a DNS name: labels of letters, digits and inner hyphens, 253 bytes in all.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_dns_subdomain(text) {
            Ok(Self(text.into()))
        } else {
            Err(IdentityError::TrustDomain(shorten(text)))
        }
    }
}

/// One sidecar: what its xDS client certificate says.
///
/// Displays as the certificate's common name without the trust domain: `<uuid>.sidecar.<service account>.<namespace>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyIdentity {
    /// The value of the pod's `osm-proxy-uuid` label, made at injection.
    pub uuid: Uuid,
    /// The service account the pod runs under.
    pub service: ServiceIdentity,
}

/// The kind part of a proxy certificate's name: the only kind there is.
const SIDECAR: &str = "sidecar";

impl ProxyIdentity {
    /// The common name of the proxy's xDS client certificate:
    /// `<uuid>.sidecar.<service account>.<namespace>.<trust domain>`.
    pub fn common_name(&self, trust_domain: &TrustDomain) -> String {
        format!("{self}.{trust_domain}")
    }

    /// Reads a common name back.
    ///
    /// The trust domain and the namespace (a DNS label, so without dots) are taken from the end, hence a service
    /// account with dots in its name is read correctly.
    ///
    /// # Errors
    /// [`IdentityError::CommonName`] when the name has another shape, another trust domain or a malformed uuid.
    pub fn from_common_name(name: &str, trust_domain: &TrustDomain) -> Result<Self, IdentityError> {
        let parse = || {
            let rest = name.strip_suffix(trust_domain.as_str())?.strip_suffix('.')?;
            let (uuid, rest) = rest.split_once('.')?;
            let (kind, rest) = rest.split_once('.')?;
            let (account, namespace) = rest.rsplit_once('.')?;
            let valid = uuid.len() == 36
                && !uuid.bytes().any(|byte| byte.is_ascii_uppercase())
                && kind == SIDECAR
                && is_dns_subdomain(account)
                && is_dns_label(namespace);
            let uuid = Uuid::try_parse(uuid).ok()?;
            valid.then(|| Self {
                uuid,
                service: ServiceIdentity::new(namespace, account),
            })
        };
        parse().ok_or_else(|| IdentityError::CommonName(shorten(name)))
    }
}

impl fmt::Display for ProxyIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{SIDECAR}.{}", self.uuid, self.service)
    }
}

/// Why a name is not one of the mesh's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not the common name of a proxy of this mesh.
    #[error(
        "{0:?} is not a proxy certificate's name: expected <uuid>.sidecar.<service account>.<namespace>.<trust domain>"
    )]
    CommonName(String),
    /// Not a DNS name.
    #[error("{0:?} is not a trust domain: expected a DNS name such as cluster.local")]
    TrustDomain(String),
}

/// Whether `text` is an RFC 1123 label, as namespaces are.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `text` is an RFC 1123 subdomain, as names of most Kubernetes objects are.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// The first characters of hostile input, enough to recognise it in an error.
fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> Result<ProxyIdentity, IdentityError> {
        ProxyIdentity::from_common_name(name, &TrustDomain::default())
    }

    #[test]
    fn a_common_name_is_read_back_also_with_dots_in_the_account() {
        for account in ["bookbuyer", "book.buyer"] {
            let proxy = ProxyIdentity {
                uuid: Uuid::from_u128(7),
                service: ServiceIdentity::new("shop", account),
            };
            assert_eq!(read(&proxy.common_name(&TrustDomain::default())), Ok(proxy));
        }
    }

    #[test]
    fn hostile_common_names_are_refused() {
        let uuid = Uuid::from_u128(7);
        let upper = "6A1E9E6B-0000-4000-8000-00000000000F";
        let long = format!("{uuid}.sidecar.{}.ns.cluster.local", "a".repeat(64 * 1024));
        for name in [
            "",
            "cluster.local",
            "sa.ns.cluster.local",
            "not-a-uuid.sidecar.sa.ns.cluster.local",
            &format!("{upper}.sidecar.sa.ns.cluster.local"),
            &format!("{uuid}.gateway.sa.ns.cluster.local"),
            &format!("{uuid}.sidecar.sa.ns.other.domain"),
            &format!("{uuid}.sidecar..ns.cluster.local"),
            &format!("{uuid}.sidecar.sa..cluster.local"),
            &format!("{uuid}.sidecar.s\0a.ns.cluster.local"),
            &format!("{uuid}.sidecar.sa\n.ns.cluster.local"),
            &format!("{uuid}.sidecar.sà.ns.cluster.local"),
            &format!("{}.sidecar.sa.ns.cluster.local", uuid.simple()),
            &long,
        ] {
            let error = read(name).expect_err(name);
            assert!(error.to_string().len() < 2_000);
        }
    }

    #[test]
    fn trust_domains_are_dns_names() {
        assert!("mesh.example".parse::<TrustDomain>().is_ok());
        for bad in ["", ".", "a..b", "UPPER", "-a", "a b"] {
            assert!(bad.parse::<TrustDomain>().is_err(), "{bad}");
        }
    }
}
