//! What is spoken on a Service port.

use crate::ir::Protocol;

/// The protocol of a TCP port, by its `appProtocol` or else by its name.
///
/// An `appProtocol` that the mesh does not know (`https`, `tls`, `mysql`, ...) is opaque to it: TCP. A name counts
/// whole or as a prefix before a dash, as in the original (`http-web`, `tcp-server-first-db`). A port that says nothing
/// speaks HTTP.
pub fn of(app_protocol: Option<&str>, port_name: &str) -> Protocol {
    match app_protocol.filter(|protocol| !protocol.is_empty()) {
        Some(protocol) => by_app_protocol(protocol),
        None => by_name(port_name).unwrap_or(Protocol::Http),
    }
}

fn by_app_protocol(protocol: &str) -> Protocol {
    match &*protocol.to_ascii_lowercase() {
        // The names of the original, of Kubernetes (KEP-3726) and of other meshes.
        "http" | "http1" | "http2" | "h2c" | "ws" | "kubernetes.io/h2c" | "kubernetes.io/ws" => {
            Protocol::Http
        }
        "grpc" | "grpc-web" | "kubernetes.io/grpc" => Protocol::Grpc,
        "tcp-server-first" => Protocol::TcpServerFirst,
        _ => Protocol::Tcp,
    }
}

fn by_name(name: &str) -> Option<Protocol> {
    const NAMES: [Protocol; 4] = [
        Protocol::TcpServerFirst,
        Protocol::Http,
        Protocol::Grpc,
        Protocol::Tcp,
    ];
    NAMES.into_iter().find(|protocol| {
        name.strip_prefix(protocol.name())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_protocol_counts_then_the_name_then_http() {
        for (app_protocol, name, protocol) in [
            (None, "", Protocol::Http),
            (None, "web", Protocol::Http),
            (None, "http", Protocol::Http),
            (None, "http-web", Protocol::Http),
            (None, "grpc", Protocol::Grpc),
            (None, "grpc-api", Protocol::Grpc),
            (None, "tcp", Protocol::Tcp),
            (None, "tcp-echo", Protocol::Tcp),
            (None, "tcpecho", Protocol::Http),
            (None, "tcp-server-first", Protocol::TcpServerFirst),
            (None, "tcp-server-first-db", Protocol::TcpServerFirst),
            (None, "tcp-server", Protocol::Tcp),
            (Some(""), "tcp-echo", Protocol::Tcp),
            (Some("http"), "tcp-echo", Protocol::Http),
            (Some("tcp"), "http-web", Protocol::Tcp),
            (Some("gRPC"), "", Protocol::Grpc),
            (Some("tcp-server-first"), "", Protocol::TcpServerFirst),
            (Some("kubernetes.io/h2c"), "tcp-x", Protocol::Http),
            (Some("kubernetes.io/ws"), "tcp-x", Protocol::Http),
            (Some("kubernetes.io/wss"), "http", Protocol::Tcp),
            (Some("https"), "http", Protocol::Tcp),
            (Some("tls"), "", Protocol::Tcp),
            (Some("mysql"), "", Protocol::Tcp),
            (Some("mongo"), "", Protocol::Tcp),
            (Some("example.com/own"), "http", Protocol::Tcp),
        ] {
            assert_eq!(of(app_protocol, name), protocol, "{app_protocol:?} {name:?}");
        }
    }
}
