//! What stands in each kind of certificate.
//!
//! Owns the names and usages; the formats are the original's (users, RBAC rules and dashboards match on them), with
//! one difference: an xDS client certificate carries no DNS name, so that it cannot pass for a workload's (law 2).

use crate::{
    api::names,
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
};

/// What a key may be used for in TLS (extended key usage).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Usage {
    /// Proves a client.
    Client,
    /// Proves a server.
    Server,
    /// Proves both.
    Both,
}

/// The contents of a leaf certificate, before it has a key, a serial number and a validity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The subject's common name. May exceed X.520's 64 bytes, as the original's did; Envoy, Go and rustls accept it.
    pub common_name: String,
    /// DNS names, in order.
    pub dns_names: Vec<String>,
    /// URIs, in order.
    pub uris: Vec<String>,
    /// What it proves.
    pub usage: Usage,
}

impl Profile {
    /// A workload's certificate, for traffic between sidecars: `<sa>.<ns>.<td>`, both client and server.
    pub fn service(identity: &ServiceIdentity, trust_domain: &TrustDomain) -> Self {
        let name = identity.principal(trust_domain);
        Self {
            uris: vec![format!(
                "spiffe://{trust_domain}/{}/{}",
                identity.name, identity.namespace
            )],
            dns_names: vec![name.clone()],
            common_name: name,
            usage: Usage::Both,
        }
    }

    /// A sidecar's certificate towards the controller: `<uuid>.sidecar.<sa>.<ns>.<td>`, client only, no DNS name.
    pub fn proxy(proxy: &ProxyIdentity, trust_domain: &TrustDomain) -> Self {
        Self {
            common_name: proxy.common_name(trust_domain),
            dns_names: Vec::new(),
            uris: vec![proxy_uri(proxy, trust_domain)],
            usage: Usage::Client,
        }
    }

    /// The controller's certificate towards sidecars: `ads.<td>`, server only.
    pub fn ads(trust_domain: &TrustDomain) -> Self {
        Self::server(names::ads_server(trust_domain))
    }

    /// A webhook's certificate towards the API server: `<service>.<namespace>.svc`, server only.
    pub fn webhook(service: &str, namespace: &str) -> Self {
        Self::server(format!("{service}.{namespace}.svc"))
    }

    /// An ingress gateway's certificate towards the mesh: the names MeshConfig gives, the first one being the common
    /// name; client and server. `None` when there is no name.
    pub fn gateway(dns_names: &[String]) -> Option<Self> {
        let common_name = dns_names.first()?.clone();
        Some(Self {
            common_name,
            dns_names: dns_names.to_vec(),
            uris: Vec::new(),
            usage: Usage::Both,
        })
    }

    fn server(name: String) -> Self {
        Self {
            dns_names: vec![name.clone()],
            common_name: name,
            uris: Vec::new(),
            usage: Usage::Server,
        }
    }
}

/// The SPIFFE-style name of a sidecar: `spiffe://<td>/<uuid>/sidecar/<sa>/<ns>`, as the original's.
pub(super) fn proxy_uri(proxy: &ProxyIdentity, trust_domain: &TrustDomain) -> String {
    let ProxyIdentity { uuid, service } = proxy;
    format!(
        "spiffe://{trust_domain}/{uuid}/sidecar/{}/{}",
        service.name, service.namespace
    )
}
