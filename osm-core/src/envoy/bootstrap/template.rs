//! Bootstrap configurations but for who the proxy is: rendered once for all pods that are alike.
//!
//! Rendering goes through reflection, which was more than a third of an admission's work; the pods of a Deployment differ
//! in the proxy's uuid alone. Invariants: what is remembered gives the same bytes as rendering anew; memory is bounded, whatever pods
//! tenants make.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use uuid::Uuid;

use super::{Bootstrap, Probe};
use crate::envoy::json::to_json;

/// Most templates that are remembered.
const MOST: usize = 256;
/// Largest template that is remembered, in bytes: that of a pod with some twenty probes.
const LARGEST: usize = 64 * 1024;

/// Rendered templates, remembered. Clones share what they remember.
#[derive(Clone, Default)]
pub struct Templates(Arc<Mutex<HashMap<Shape, Arc<Template>>>>);

/// A JSON object of everything but the node.
struct Template(String);

/// All that a template is made from: a [`Bootstrap`] without its uuid.
#[derive(PartialEq, Eq, Hash)]
struct Shape {
    trust_domain: Box<str>,
    controller_namespace: Box<str>,
    probes: Box<[Probe]>,
    bind: IpAddr,
    directory: Box<str>,
    relay: Option<Box<str>>,
}

impl Templates {
    /// The same as [`Bootstrap::render`], made from what is remembered if it is.
    pub fn render(&self, bootstrap: &Bootstrap<'_>) -> String {
        let shape = Shape::of(bootstrap);
        let known = self.with(|known| known.get(&shape).cloned());
        let template = known.unwrap_or_else(|| {
            let template = Arc::new(Template::of(bootstrap));
            if template.0.len() <= LARGEST {
                self.with(|known| {
                    // Rarely: a cluster has few kinds of pods that come often.
                    if known.len() >= MOST {
                        known.clear();
                    }
                    known.insert(shape, template.clone());
                });
            }
            template
        });
        template.of_proxy(bootstrap.uuid)
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Shape, Arc<Template>>) -> T) -> T {
        // Nobody leaves it half changed.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Templates({})", self.with(|known| known.len()))
    }
}

impl Shape {
    fn of(bootstrap: &Bootstrap<'_>) -> Self {
        Self {
            trust_domain: bootstrap.trust_domain.as_str().into(),
            controller_namespace: bootstrap.controller_namespace.into(),
            probes: bootstrap.probes.into(),
            bind: bootstrap.bind,
            directory: bootstrap.directory.into(),
            relay: bootstrap.relay.map(Into::into),
        }
    }
}

impl Template {
    fn of(bootstrap: &Bootstrap<'_>) -> Self {
        Self(to_json(&bootstrap.message()).to_string())
    }

    /// With the node, whose uuid needs no escaping, as the object's first member.
    fn of_proxy(&self, uuid: Uuid) -> String {
        format!(r#"{{"node":{{"id":"{uuid}"}},{}"#, &self.0[1..])
    }
}

/// Renders without remembering.
pub(super) fn render(bootstrap: &Bootstrap<'_>) -> String {
    Template::of(bootstrap).of_proxy(bootstrap.uuid)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;
    use crate::{envoy::bootstrap::ProbeKind, identity::TrustDomain};

    fn probe(path: &str) -> Probe {
        Probe {
            kind: ProbeKind::Readiness,
            container: "app".into(),
            port: 80,
            path: path.into(),
            tls: false,
            timeout: Duration::from_secs(1),
        }
    }

    fn bootstrap<'a>(uuid: u128, trust_domain: &'a TrustDomain, probes: &'a [Probe]) -> Bootstrap<'a> {
        Bootstrap {
            uuid: Uuid::from_u128(uuid),
            trust_domain,
            controller_namespace: "osm-system",
            probes,
            bind: Ipv4Addr::UNSPECIFIED.into(),
            directory: "/etc/envoy",
            relay: None,
        }
    }

    #[test]
    fn what_is_remembered_is_what_would_be_rendered() {
        let (templates, domain) = (Templates::default(), TrustDomain::default());
        let other = "mesh.example".parse::<TrustDomain>().unwrap();
        // A path that looks like the node.
        let strange = [probe(
            "/{\"node\":{\"id\":\"00000000-0000-0000-0000-000000000001\"},",
        )];
        let probes: [&[Probe]; 3] = [&[], &[probe("/")], &strange];
        let mut relayed = bootstrap(1, &domain, &[]);
        relayed.relay = Some("/run/relay");
        let mut elsewhere = bootstrap(1, &domain, &[]);
        elsewhere.controller_namespace = "mesh";
        let mut six = bootstrap(1, &domain, &[]);
        six.bind = std::net::Ipv6Addr::UNSPECIFIED.into();
        let mut there = bootstrap(1, &domain, &[]);
        there.directory = "/somewhere";
        let mut all = vec![bootstrap(1, &other, &[]), relayed, elsewhere, six, there];
        for uuid in [1, 2] {
            all.extend(probes.map(|probes| bootstrap(uuid, &domain, probes)));
        }
        for _ in 0..2 {
            for bootstrap in &all {
                assert_eq!(templates.render(bootstrap), bootstrap.render());
            }
        }
        assert_eq!(templates.with(|known| known.len()), 8);
        let parsed: serde_json::Value = serde_json::from_str(&templates.render(&all[7])).unwrap();
        assert_eq!(parsed["node"]["id"], "00000000-0000-0000-0000-000000000001");
    }

    #[test]
    fn memory_is_bounded() {
        let (templates, domain) = (Templates::default(), TrustDomain::default());
        for number in 0..=MOST {
            templates.render(&bootstrap(1, &domain, &[probe(&format!("/{number}"))]));
        }
        assert!(templates.with(|known| known.len()) <= MOST);
        let held = templates.with(|known| known.len());
        templates.render(&bootstrap(1, &domain, &[probe(&"/".repeat(LARGEST))]));
        assert_eq!(templates.with(|known| known.len()), held);
    }
}
