//! The kubelet's probes, led past mutual TLS.
//!
//! The kubelet has no certificate of the mesh, so its probes would be refused. HTTP and HTTPS probes are turned to
//! Envoy's probe listeners, where each has a path of its own; TCP and gRPC probes to `osm-sidecar healthcheck`, since
//! Envoy would accept a connection whether or not the application does. A rewritten probe carries its original in
//! headers, so that a pod that is copied can be undone without asking anybody.
//!
//! Left alone: `exec` probes; probes with a `host`, which do not ask this pod; ports that do not exist (the kubelet or
//! the API server say so themselves).

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, HTTPHeader, Pod, Probe as KubernetesProbe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    denial::{Denial, shorten},
    inventory::containers,
    patch::Editor,
};
use crate::{
    api::ports,
    envoy::bootstrap::{ORIGINAL_HEADERS, Probe, ProbeKind},
};

/// The path of `osm-sidecar healthcheck`.
const HELPER_PATH: &str = "/osm-healthcheck";
/// What `osm-sidecar healthcheck` is to ask: a connection to this port.
const TCP_PORT: &str = "Original-Tcp-Port";
/// What `osm-sidecar healthcheck` is to ask: the gRPC health service at this port.
const GRPC_PORT: &str = "Original-Grpc-Port";
/// The service name of a gRPC health check; absent for the server as a whole.
const GRPC_SERVICE: &str = "Original-Grpc-Service";
/// How many seconds `osm-sidecar healthcheck` has.
const TIMEOUT: &str = "Original-Timeout-Seconds";
const HTTP_PORT: &str = ORIGINAL_HEADERS[0];
const HTTP_PATH: &str = ORIGINAL_HEADERS[1];
const HTTP_SCHEME: &str = ORIGINAL_HEADERS[2];
/// Longest path of an HTTP probe, in bytes; Envoy takes 60 KiB of headers in all.
const MAX_PATH: usize = 4096;

/// What came of the probes of a pod.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    /// The probes Envoy answers.
    pub(super) by_envoy: Vec<Probe>,
    /// The ports that `osm-sidecar healthcheck` is to ask, each once; if any, the pod needs it.
    pub(super) helper_ports: BTreeSet<u16>,
}

impl Rewritten {
    /// The kinds of probes that Envoy answers.
    pub(super) fn ports(&self) -> Vec<ProbeKind> {
        let used = |kind: &ProbeKind| self.by_envoy.iter().any(|probe| probe.kind == *kind);
        ProbeKind::ALL.into_iter().filter(used).collect()
    }
}

/// Rewrites the probes of all containers.
pub(super) fn rewrite(pod: &Pod, editor: &mut Editor) -> Result<Rewritten, Denial> {
    let mut rewritten = Rewritten::default();
    for (list, index, container) in pod.spec.iter().flat_map(containers) {
        for (kind, probe) in probes(container) {
            let path = Path {
                list,
                index: index.to_string(),
                field: field(kind),
            };
            let timeout = u64::try_from(probe.timeout_seconds.unwrap_or(1))
                .unwrap_or(1)
                .clamp(1, 3600);
            if let Some((port, target)) = helper_target(container, probe) {
                let handler = if probe.grpc.is_some() { "grpc" } else { "tcpSocket" };
                editor.remove(&path.of(handler));
                editor.add(&path.of("httpGet"), helper_probe(&target, timeout));
                rewritten.helper_ports.insert(port);
            } else if let Some(public) = http_target(container, kind, probe, timeout)? {
                let original = editor.get(&path.of("httpGet")).cloned().unwrap_or_default();
                editor.replace(&path.of("httpGet"), http_probe(original, &public));
                rewritten.by_envoy.push(public);
            }
        }
    }
    Ok(rewritten)
}

/// Undoes [`rewrite`].
pub(super) fn restore(pod: &Pod, editor: &mut Editor) -> Result<(), Denial> {
    for (list, index, container) in pod.spec.iter().flat_map(containers) {
        for (kind, probe) in probes(container) {
            let Some(http) = &probe.http_get else { continue };
            let IntOrString::Int(port) = http.port else {
                continue;
            };
            let headers = http.http_headers.as_deref().unwrap_or_default();
            let at =
                |expected: u16, path: &str| port == i32::from(expected) && http.path.as_deref() == Some(path);
            let path = Path {
                list,
                index: index.to_string(),
                field: field(kind),
            };
            let lost = || Denial::Probe {
                container: shorten(&container.name),
                kind: kind.name(),
                problem: "rewritten for a sidecar, and lacks the headers that tell what it was",
            };
            if at(ports::HEALTHCHECK, HELPER_PATH) {
                let (handler, original) = original_of_helper(headers).ok_or_else(lost)?;
                editor.remove(&path.of("httpGet"));
                editor.add(&path.of(handler), original);
            } else if at(kind.port(), &kind.public_path(&container.name)) {
                let rewritten = editor.get(&path.of("httpGet")).cloned().unwrap_or_default();
                let original = original_of_http(rewritten, headers).ok_or_else(lost)?;
                editor.replace(&path.of("httpGet"), original);
            }
        }
    }
    Ok(())
}

struct Path {
    list: &'static str,
    index: String,
    field: &'static str,
}

impl Path {
    fn of<'a>(&'a self, handler: &'a str) -> [&'a str; 5] {
        ["spec", self.list, &self.index, self.field, handler]
    }
}

/// The field of a container that a kind of probe stands in.
pub(super) fn field(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Liveness => "livenessProbe",
        ProbeKind::Readiness => "readinessProbe",
        ProbeKind::Startup => "startupProbe",
    }
}

/// The probes of a container.
pub(super) fn probes(container: &Container) -> impl Iterator<Item = (ProbeKind, &KubernetesProbe)> {
    [
        (ProbeKind::Liveness, &container.liveness_probe),
        (ProbeKind::Readiness, &container.readiness_probe),
        (ProbeKind::Startup, &container.startup_probe),
    ]
    .into_iter()
    .filter_map(|(kind, probe)| Some((kind, probe.as_ref()?)))
}

/// The port the helper is to ask, and the headers that tell it what.
fn helper_target(
    container: &Container,
    probe: &KubernetesProbe,
) -> Option<(u16, Vec<(&'static str, String)>)> {
    if let Some(tcp) = &probe.tcp_socket {
        let port = resolve(container, &tcp.port).filter(|_| tcp.host.is_none())?;
        return Some((port, vec![(TCP_PORT, port.to_string())]));
    }
    let grpc = probe.grpc.as_ref()?;
    let port = u16::try_from(grpc.port).ok().filter(|port| *port != 0)?;
    let service = grpc.service.clone().filter(|service| !service.is_empty());
    // A name that no header can carry is left for the API server to judge.
    if service
        .as_ref()
        .is_some_and(|service| service.len() > MAX_PATH || service.chars().any(char::is_control))
    {
        return None;
    }
    let mut headers = vec![(GRPC_PORT, port.to_string())];
    headers.extend(service.map(|service| (GRPC_SERVICE, service)));
    Some((port, headers))
}

fn helper_probe(target: &[(&'static str, String)], timeout: u64) -> Value {
    let timeout = (TIMEOUT, timeout.to_string());
    let headers: Vec<Value> = target
        .iter()
        .chain([&timeout])
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({ "path": HELPER_PATH, "port": ports::HEALTHCHECK, "scheme": "HTTP", "httpHeaders": headers })
}

fn http_target(
    container: &Container,
    kind: ProbeKind,
    probe: &KubernetesProbe,
    timeout: u64,
) -> Result<Option<Probe>, Denial> {
    let Some(http) = probe
        .http_get
        .as_ref()
        .filter(|http| http.host.as_ref().is_none_or(String::is_empty))
    else {
        return Ok(None);
    };
    let Some(port) = resolve(container, &http.port) else {
        return Ok(None);
    };
    let problem = |problem| Denial::Probe {
        container: shorten(&container.name),
        kind: kind.name(),
        problem,
    };
    let path = http
        .path
        .clone()
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    if path.len() > MAX_PATH {
        return Err(problem("too long a path (more than 4096 bytes)"));
    }
    if path.chars().any(char::is_control) {
        return Err(problem("a path with control characters"));
    }
    Ok(Some(Probe {
        kind,
        container: container.name.clone(),
        port,
        path: if path.starts_with('/') {
            path
        } else {
            format!("/{path}")
        },
        tls: http.scheme.as_deref() == Some("HTTPS"),
        timeout: Duration::from_secs(timeout),
    }))
}

/// The original with another path, port and scheme, and headers that keep them.
fn http_probe(mut original: Value, probe: &Probe) -> Value {
    let mut headers = original["httpHeaders"].as_array().cloned().unwrap_or_default();
    let mut header = |name: &str, value: String| headers.push(json!({ "name": name, "value": value }));
    header(HTTP_PORT, probe.port.to_string());
    header(HTTP_PATH, probe.path.clone());
    if probe.tls {
        header(HTTP_SCHEME, "HTTPS".to_owned());
    }
    original["httpHeaders"] = headers.into();
    original["path"] = probe.public_path().into();
    original["port"] = probe.kind.port().into();
    original["scheme"] = "HTTP".into();
    original
}

fn original_of_helper(headers: &[HTTPHeader]) -> Option<(&'static str, Value)> {
    if let Some(port) = port_header(headers, TCP_PORT) {
        return Some(("tcpSocket", json!({ "port": port })));
    }
    let port = port_header(headers, GRPC_PORT)?;
    Some((
        "grpc",
        json!({ "port": port, "service": header(headers, GRPC_SERVICE).unwrap_or_default() }),
    ))
}

fn original_of_http(mut rewritten: Value, headers: &[HTTPHeader]) -> Option<Value> {
    rewritten["port"] = port_header(headers, HTTP_PORT)?.into();
    rewritten["path"] = header(headers, HTTP_PATH)?.into();
    rewritten["scheme"] = header(headers, HTTP_SCHEME).unwrap_or("HTTP").into();
    let mut left = rewritten["httpHeaders"].as_array().cloned().unwrap_or_default();
    left.retain(|header| !ORIGINAL_HEADERS.iter().any(|name| header["name"] == *name));
    match (left.is_empty(), rewritten.as_object_mut()) {
        (true, Some(object)) => drop(object.remove("httpHeaders")),
        _ => rewritten["httpHeaders"] = left.into(),
    }
    Some(rewritten)
}

fn header<'a>(headers: &'a [HTTPHeader], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|header| header.name == name)
        .map(|header| header.value.as_str())
}

fn port_header(headers: &[HTTPHeader], name: &str) -> Option<u16> {
    header(headers, name)?.parse().ok().filter(|port| *port != 0)
}

/// A port by number, or by the name of one of the container's own.
fn resolve(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(text));
            // Kubernetes also takes a number in quotes.
            named
                .map(|port| port.container_port)
                .or_else(|| text.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}
