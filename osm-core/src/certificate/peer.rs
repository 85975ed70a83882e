//! Whose sidecar a certificate proves (laws 1 and 2).
//!
//! Invariant: only an xDS client certificate names a proxy; a workload's, a server's or a root does not, whatever
//! its common name says. The chain has been verified by TLS before; this reads what the leaf says.

use super::{Certificate, ParseError, Usage, profile::proxy_uri};
use crate::identity::{IdentityError, ProxyIdentity, TrustDomain};

/// Why a certificate is not a sidecar's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not a certificate.
    #[error("the client certificate cannot be read: {0}")]
    Parse(#[from] ParseError),
    /// Another kind of certificate.
    #[error("the client certificate is not a sidecar's xDS certificate: {0}")]
    Kind(&'static str),
    /// The name is not a proxy's.
    #[error(transparent)]
    Name(#[from] IdentityError),
}

/// The proxy whose xDS client certificate `der` is.
///
/// # Errors
/// [`PeerError`] unless it is a leaf for client authentication, without DNS name, whose common name is a proxy's in
/// `trust_domain` and whose only URI, if any, says the same. The DNS name is what tells a workload's certificate:
/// a service account may be *named* like a proxy, and an external CA may add server authentication to everything.
pub fn proxy_of(der: &[u8], trust_domain: &TrustDomain) -> Result<ProxyIdentity, PeerError> {
    let certificate = Certificate::from_der(der)?;
    if certificate.is_ca {
        return Err(PeerError::Kind("it is a CA"));
    }
    if !matches!(certificate.usage, Some(Usage::Client | Usage::Both)) {
        return Err(PeerError::Kind("it is not for client authentication"));
    }
    if !certificate.dns_names.is_empty() || certificate.other_names {
        return Err(PeerError::Kind("it carries names that a sidecar's does not"));
    }
    let name = certificate
        .common_name
        .as_deref()
        .ok_or(PeerError::Kind("it has no single common name"))?;
    let proxy = ProxyIdentity::from_common_name(name, trust_domain)?;
    match certificate.uris.as_slice() {
        [] => Ok(proxy),
        [uri] if *uri == proxy_uri(&proxy, trust_domain) => Ok(proxy),
        _ => Err(PeerError::Kind(
            "its URI names another proxy than its common name",
        )),
    }
}
