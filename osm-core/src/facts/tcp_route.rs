//! TCPRoutes: ports of TCP connections.

use std::sync::Arc;

use super::{Diagnostic, Fact, FactKey, FactKind, service::port_number};
use crate::api;

/// A TCPRoute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpRoute {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Ports as pods listen on them, ordered; any when empty.
    pub ports: Vec<u16>,
}

/// Reads a TCPRoute.
///
/// # Errors
/// `InvalidPort`: leaving a bad port out could turn "these ports" into "any port", so the whole object is refused.
pub fn from(object: &api::TCPRoute) -> Result<Fact, Diagnostic> {
    let key = FactKey::of(FactKind::TCPRoute, &object.metadata);
    let mut ports = Vec::new();
    for (index, port) in object.spec.matches.ports.iter().enumerate() {
        match port_number(*port) {
            Some(port) => ports.push(port),
            None => {
                let message = format!("spec.matches.ports[{index}] is {port}: ports are 1 to 65535");
                return Err(Diagnostic::new(key, "InvalidPort", message));
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(Fact::TCPRoute(TcpRoute {
        namespace: key.namespace,
        name: key.name,
        ports,
    }))
}
