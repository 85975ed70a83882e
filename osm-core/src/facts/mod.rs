//! What the mesh needs to know of each Kubernetes object, and nothing else.
//!
//! Owns the reading of Kubernetes objects: one file a kind, each with a function `from` that normalises an object into
//! its fact or says in a [`Diagnostic`] why it cannot. Must not decide anything that needs a second object. Invariants:
//! a fact is well formed, so that nothing built from it is rejected by Envoy for its sake; two writes of an object that
//! the mesh does not care to tell apart (status, bookkeeping labels, `resourceVersion`, order of lists) give equal facts.

pub mod endpoint_slice;
pub mod http_route_group;
pub mod lean;
pub mod mesh_config;
pub mod namespace;
pub mod pattern;
pub mod pod;
pub mod service;
pub mod service_account;
pub mod tcp_route;
pub mod traffic_split;
pub mod traffic_target;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use endpoint_slice::EndpointSlice;
pub use http_route_group::HttpRouteGroup;
pub use mesh_config::MeshConfig;
pub use namespace::Namespace;
pub use pod::Pod;
pub use service::Service;
pub use service_account::ServiceAccount;
pub use tcp_route::TcpRoute;
pub use traffic_split::TrafficSplit;
pub use traffic_target::TrafficTarget;

/// The kinds of objects the mesh is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FactKind {
    /// Core `Namespace`.
    Namespace,
    /// Core `Service`.
    Service,
    /// `discovery.k8s.io` `EndpointSlice`.
    EndpointSlice,
    /// Core `Pod`.
    Pod,
    /// Core `ServiceAccount`.
    ServiceAccount,
    /// `config.openservicemesh.io` `MeshConfig`.
    MeshConfig,
    /// SMI `TrafficTarget`.
    TrafficTarget,
    /// SMI `HTTPRouteGroup`.
    HTTPRouteGroup,
    /// SMI `TCPRoute`.
    TCPRoute,
    /// SMI `TrafficSplit`.
    TrafficSplit,
}

impl FactKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::ServiceAccount,
        Self::MeshConfig,
        Self::TrafficTarget,
        Self::HTTPRouteGroup,
        Self::TCPRoute,
        Self::TrafficSplit,
    ];

    /// The kind as Kubernetes spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::ServiceAccount => "ServiceAccount",
            Self::MeshConfig => "MeshConfig",
            Self::TrafficTarget => "TrafficTarget",
            Self::HTTPRouteGroup => "HTTPRouteGroup",
            Self::TCPRoute => "TCPRoute",
            Self::TrafficSplit => "TrafficSplit",
        }
    }
}

/// Which object a fact is of. Displays as `<kind> <namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FactKey {
    /// The object's kind.
    pub kind: FactKind,
    /// Its namespace; empty for a Namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl FactKey {
    /// A key from its parts.
    pub fn new(kind: FactKind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of the object with this metadata.
    pub fn of(kind: FactKind, metadata: &ObjectMeta) -> Self {
        Self::new(
            kind,
            metadata.namespace.as_deref().unwrap_or(""),
            metadata.name.as_deref().unwrap_or(""),
        )
    }
}

impl fmt::Display for FactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind.name(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
        }
    }
}

/// One object, as far as the mesh cares.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A Namespace.
    Namespace(Namespace),
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Pod.
    Pod(Pod),
    /// A ServiceAccount.
    ServiceAccount(ServiceAccount),
    /// A MeshConfig.
    MeshConfig(Box<MeshConfig>),
    /// A TrafficTarget.
    TrafficTarget(TrafficTarget),
    /// An HTTPRouteGroup.
    HTTPRouteGroup(HttpRouteGroup),
    /// A TCPRoute.
    TCPRoute(TcpRoute),
    /// A TrafficSplit.
    TrafficSplit(TrafficSplit),
}

impl Fact {
    /// Which object it is of.
    pub fn key(&self) -> FactKey {
        let (kind, namespace, name) = match self {
            Self::Namespace(fact) => return FactKey::new(FactKind::Namespace, "", fact.name.clone()),
            Self::Service(fact) => (FactKind::Service, &fact.namespace, &fact.name),
            Self::EndpointSlice(fact) => (FactKind::EndpointSlice, &fact.namespace, &fact.name),
            Self::Pod(fact) => (FactKind::Pod, &fact.namespace, &fact.name),
            Self::ServiceAccount(fact) => (FactKind::ServiceAccount, &fact.namespace, &fact.name),
            Self::MeshConfig(fact) => (FactKind::MeshConfig, &fact.namespace, &fact.name),
            Self::TrafficTarget(fact) => (FactKind::TrafficTarget, &fact.namespace, &fact.name),
            Self::HTTPRouteGroup(fact) => (FactKind::HTTPRouteGroup, &fact.namespace, &fact.name),
            Self::TCPRoute(fact) => (FactKind::TCPRoute, &fact.namespace, &fact.name),
            Self::TrafficSplit(fact) => (FactKind::TrafficSplit, &fact.namespace, &fact.name),
        };
        FactKey::new(kind, namespace.clone(), name.clone())
    }
}

/// What is wrong with an object, for its owner: an event, a status, a line of `osm analyze`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The object.
    pub object: FactKey,
    /// A stable CamelCase word, fit for an event's reason and a metric's label.
    pub reason: &'static str,
    /// What is wrong, where, and what becomes of it. At most [`Diagnostic::MAX_MESSAGE`] bytes.
    pub message: String,
}

impl Diagnostic {
    /// Longest message, bytes: an event's note may have 1,024.
    pub const MAX_MESSAGE: usize = 1_000;

    /// A diagnostic; a longer message is cut.
    pub fn new(object: FactKey, reason: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Self::MAX_MESSAGE {
            let end = (0..=Self::MAX_MESSAGE)
                .rev()
                .find(|end| message.is_char_boundary(*end))
                .unwrap_or(0);
            message.truncate(end);
        }
        Self {
            object,
            reason,
            message,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.reason, self.message)
    }
}

/// What is wrong with a part of an object whose rest is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// As in [`Diagnostic`].
    pub reason: &'static str,
    /// As in [`Diagnostic`].
    pub message: String,
}

/// The start of a user's text, for a message.
fn excerpt(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
