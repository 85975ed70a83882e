//! The names a peer's certificate must have: matchers of its DNS subject alternative names.
//!
//! Invariant: a list made here is never empty. Envoy takes a validation context without names to accept every
//! certificate of the roots.

use std::collections::BTreeSet;

use osm_proto::envoy::{
    extensions::transport_sockets::tls::v3::{SubjectAltNameMatcher, subject_alt_name_matcher::SanType},
    r#type::matcher::v3::StringMatcher,
};

use super::matcher::{exact, suffix};
use crate::{
    identity::TrustDomain,
    ir::{Forward, InboundChain},
};

/// A name that no certificate has: it is not a DNS name, so no issuer signs it.
const NOBODY: &str = "(nobody)";

/// One of these names; nobody's when there are none.
pub(super) fn only<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Vec<SubjectAltNameMatcher> {
    let names: Vec<_> = names.into_iter().map(|name| dns(exact(name.as_ref()))).collect();
    if names.is_empty() {
        vec![dns(exact(NOBODY))]
    } else {
        names
    }
}

/// Those who may connect to a chain of the inbound listener.
///
/// Any workload of the mesh, where HTTP rules or nothing else decides. On a TCP port that not everyone may connect
/// to, only the principals that may: Envoy's network RBAC filter looks at a connection when its first bytes arrive,
/// which is too late when the server speaks first. The application would have been connected, and its greeting sent.
pub(super) fn of_clients(chain: &InboundChain, trust_domain: &TrustDomain) -> Vec<SubjectAltNameMatcher> {
    match (&chain.forward, &chain.access) {
        (Forward::Clusters(_), Some(access)) => {
            let grants = access.grants.values();
            let here = grants.filter(|grant| grant.ports.is_empty() || grant.ports.contains(&chain.port));
            only(here.flat_map(|grant| &grant.principals).collect::<BTreeSet<_>>())
        }
        _ => vec![dns(suffix(format!(".{trust_domain}")))],
    }
}

fn dns(name: StringMatcher) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Dns.into(),
        matcher: Some(name),
        ..Default::default()
    }
}
