//! Checking what a provider answered before it is used.
//!
//! Invariant: a leaf that does not chain to the roots in use, does not say what was asked for, or is not valid now,
//! never replaces one that does.

use std::sync::Arc;

use jiff::Timestamp;
use osm_core::certificate::{TrustBundle, Usage};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
};

use super::{IssueError, Leaf, LeafRequest};
use crate::tls;

/// Checks a provider's answer.
pub(super) fn check(
    leaf: &Leaf,
    request: &LeafRequest,
    roots: &TrustBundle,
    now: Timestamp,
) -> Result<(), IssueError> {
    let refuse = |problem: &str| Err(IssueError::Answer(problem.to_owned()));
    let (certificate, profile) = (leaf.certificate(), &request.profile);
    if certificate.common_name.as_deref() != Some(profile.common_name.as_str()) {
        return refuse("the certificate has another common name than was asked for");
    }
    if sorted(&certificate.dns_names) != sorted(&profile.dns_names) || certificate.other_names {
        return refuse("the certificate has other DNS names than were asked for; check the role of the CA");
    }
    if !certificate.uris.is_empty() && certificate.uris != profile.uris {
        return refuse("the certificate has other URIs than were asked for");
    }
    let suits = match profile.usage {
        Usage::Client => matches!(certificate.usage, Some(Usage::Client | Usage::Both)),
        Usage::Server => matches!(certificate.usage, Some(Usage::Server | Usage::Both)),
        Usage::Both => certificate.usage == Some(Usage::Both),
    };
    if !suits || certificate.is_ca {
        return refuse(
            "the certificate may not be used for what was asked; allow client and server authentication",
        );
    }
    if !certificate.validity.contains(now) {
        return refuse("the certificate is not valid now; compare the clocks");
    }
    if chains(leaf, profile.usage, roots, now) {
        Ok(())
    } else {
        refuse(
            "the certificate does not chain to the root in use; the provider's root has changed, which needs a rotation",
        )
    }
}

/// Providers put names into an order of their own (Vault sorts them).
fn sorted(names: &[String]) -> Vec<&String> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort();
    names
}

fn chains(leaf: &Leaf, usage: Usage, roots: &TrustBundle, now: Timestamp) -> bool {
    let mut store = RootCertStore::empty();
    for root in roots.roots() {
        if store.add(root.der().to_vec().into()).is_err() {
            return false;
        }
    }
    let mut chain = leaf
        .chain_der()
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()));
    let (Some(first), rest) = (chain.next(), chain.collect::<Vec<_>>()) else {
        return false;
    };
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let provider = tls::provider();
    if usage == Usage::Client {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build();
        return verifier.is_ok_and(|verifier| verifier.verify_client_cert(&first, &rest, now).is_ok());
    }
    let algorithms = provider.signature_verification_algorithms.all;
    ParsedCertificate::try_from(&first).is_ok_and(|parsed| {
        verify_server_cert_signed_by_trust_anchor(&parsed, &store, &rest, now, algorithms).is_ok()
    })
}
