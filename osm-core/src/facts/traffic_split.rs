//! TrafficSplits: one service's traffic, divided among others.

use std::{collections::BTreeMap, sync::Arc};

use super::{Diagnostic, Fact, FactKey, FactKind, excerpt};
use crate::{api, api::names::CLUSTER_DOMAIN, identity::is_dns_label};

/// Most backends of one split.
const MAX_BACKENDS: usize = 128;

/// A TrafficSplit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficSplit {
    /// Its namespace, which is also that of all its services.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Seconds since 1970: the oldest split of an apex counts.
    pub created: i64,
    /// The service clients call.
    pub apex: Arc<str>,
    /// The services that answer, and their shares. The sum is positive and fits 32 bits (Envoy's bound).
    pub backends: BTreeMap<Arc<str>, u32>,
}

/// Reads a TrafficSplit. A backend that is named twice gets the sum of its weights.
///
/// # Errors
/// `InvalidService`, `InvalidBackend`, `NoBackends`, `InvalidWeight` or `TooMany`.
pub fn from(object: &api::TrafficSplit) -> Result<Fact, Diagnostic> {
    let key = FactKey::of(FactKind::TrafficSplit, &object.metadata);
    let fail = |reason, message: String| Err(Diagnostic::new(key.clone(), reason, message));
    let spec = &object.spec;
    let Some(apex) = service(&spec.service, &key.namespace) else {
        let name = excerpt(&spec.service);
        return fail(
            "InvalidService",
            format!("spec.service is {name:?}: {}", expectation(&key.namespace)),
        );
    };
    if spec.backends.is_empty() {
        return fail("NoBackends", "spec.backends is empty".to_owned());
    }
    if spec.backends.len() > MAX_BACKENDS {
        return fail("TooMany", format!("more than {MAX_BACKENDS} backends"));
    }
    let mut backends = BTreeMap::<Arc<str>, u32>::new();
    let mut sum = 0_u32;
    for (index, backend) in spec.backends.iter().enumerate() {
        let Some(name) = service(&backend.service, &key.namespace) else {
            let name = excerpt(&backend.service);
            let expectation = expectation(&key.namespace);
            return fail(
                "InvalidBackend",
                format!("spec.backends[{index}].service is {name:?}: {expectation}"),
            );
        };
        let weight = u32::try_from(backend.weight)
            .ok()
            .and_then(|weight| Some((weight, sum.checked_add(weight)?)));
        let Some((weight, total)) = weight else {
            let weight = backend.weight;
            let message =
                format!("spec.backends[{index}].weight is {weight}: weights are 0 or more, 2^32 - 1 in sum");
            return fail("InvalidWeight", message);
        };
        sum = total;
        *backends.entry(name.into()).or_default() += weight;
    }
    if sum == 0 {
        return fail(
            "InvalidWeight",
            "the weights sum to 0: traffic would have nowhere to go".to_owned(),
        );
    }
    // One that the API server has not stamped counts as youngest.
    let created = object.metadata.creation_timestamp.as_ref();
    Ok(Fact::TrafficSplit(TrafficSplit {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        created: created.map_or(i64::MAX, |time| time.0.as_second()),
        apex: apex.into(),
        backends,
    }))
}

fn expectation(namespace: &str) -> String {
    format!("it must be the name of a service of namespace {namespace}, plain or qualified by it")
}

/// The service that `text` names in `namespace`: `svc`, `svc.ns`, `svc.ns.svc` and so on to the full name.
fn service<'a>(text: &'a str, namespace: &str) -> Option<&'a str> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let (name, rest) = text
        .split_once('.')
        .map_or((text, None), |(name, rest)| (name, Some(rest)));
    let here = match rest {
        None => true,
        Some(rest) => {
            let svc = format!("{namespace}.svc");
            let short = format!(
                "{svc}.{}",
                CLUSTER_DOMAIN.split('.').next().unwrap_or(CLUSTER_DOMAIN)
            );
            let full = format!("{svc}.{CLUSTER_DOMAIN}");
            rest == namespace || [svc, short, full].iter().any(|suffix| rest == suffix)
        }
    };
    (here && is_dns_label(name)).then_some(name)
}
