//! Services of the mesh and the names they have in Envoy.

use std::{fmt, sync::Arc};

use crate::api::names::CLUSTER_DOMAIN;

/// A service, or one pod of a headless service.
///
/// Displays as `<namespace>/<name>`, or `<namespace>/<hostname>.<name>` for a pod of a StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// Hostname of the pod, for a headless service whose endpoints have hostnames.
    pub hostname: Option<Arc<str>>,
}

impl ServiceKey {
    /// The key of a whole Service.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            hostname: None,
        }
    }

    /// The key of one pod of the headless Service.
    pub fn pod(&self, hostname: impl Into<Arc<str>>) -> Self {
        Self {
            hostname: Some(hostname.into()),
            ..self.clone()
        }
    }

    /// `name`, or `hostname.name`: what clients of the same namespace call.
    pub fn host(&self) -> String {
        match &self.hostname {
            Some(hostname) => format!("{hostname}.{}", self.name),
            None => self.name.to_string(),
        }
    }

    /// The fully qualified name, which is also the SNI of connections to the service.
    pub fn fqdn(&self) -> String {
        format!("{}.{}.svc.{CLUSTER_DOMAIN}", self.host(), self.namespace)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.host())
    }
}

/// The target of a service port, as the Service spells it.
///
/// A named port is not resolved here: pods of one service may give one name different numbers, and each endpoint
/// carries its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container port.
    Name(Arc<str>),
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What names an upstream cluster: `<namespace>/<service>|<target port>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// The service.
    pub service: ServiceKey,
    /// The target port.
    pub target_port: TargetPort,
}

impl ClusterKey {
    /// The name of the proxy's own cluster for this service port.
    pub fn local(&self) -> String {
        format!("{self}|local")
    }
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}", self.service, self.target_port)
    }
}

/// The application protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2, WebSocket included.
    Http,
    /// gRPC: HTTP/2.
    Grpc,
    /// TCP in which the client speaks first.
    Tcp,
    /// TCP in which the server speaks first.
    TcpServerFirst,
}

impl Protocol {
    /// Whether requests, not just connections, are seen.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }

    /// Its name in `appProtocol` and in port-name prefixes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::TcpServerFirst => "tcp-server-first",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
