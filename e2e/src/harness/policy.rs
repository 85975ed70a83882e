//! SMI objects, as users write them.

use serde_json::{Value, json};

/// A service account: namespace and name.
pub type Account<'a> = (&'a str, &'a str);

/// Grants `sources` the `rules` (of [`http_rule`] or [`tcp_rule`]) on `destination`.
pub fn traffic_target(
    name: &str,
    destination: Account<'_>,
    rules: &[Value],
    sources: &[Account<'_>],
) -> Value {
    let subject = |(namespace, name): &Account<'_>| json!({"kind": "ServiceAccount", "name": name, "namespace": namespace});
    json!({
        "apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
        "metadata": { "name": name, "namespace": destination.0 },
        "spec": {
            "destination": subject(&destination),
            "rules": rules,
            "sources": sources.iter().map(subject).collect::<Vec<_>>(),
        },
    })
}

/// Refers to matches of an HTTPRouteGroup; to all of them when none is named.
pub fn http_rule(group: &str, matches: &[&str]) -> Value {
    let mut rule = json!({ "kind": "HTTPRouteGroup", "name": group });
    if !matches.is_empty() {
        rule["matches"] = json!(matches);
    }
    rule
}

/// Refers to a TCPRoute.
pub fn tcp_rule(route: &str) -> Value {
    json!({ "kind": "TCPRoute", "name": route })
}

/// An HTTPRouteGroup.
pub fn route_group(namespace: &str, name: &str, matches: Value) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "matches": matches },
    })
}

/// An HTTPRouteGroup that any request matches.
pub fn any_route(namespace: &str, name: &str) -> Value {
    route_group(
        namespace,
        name,
        json!([{ "name": "any", "pathRegex": ".*", "methods": ["*"] }]),
    )
}

/// A TCPRoute of target ports; of any port when none is given.
pub fn tcp_route(namespace: &str, name: &str, ports: &[u16]) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "TCPRoute",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "matches": { "name": "ports", "ports": ports } },
    })
}

/// Divides the traffic of `apex` by weights.
pub fn traffic_split(namespace: &str, name: &str, apex: &str, backends: &[(&str, u32)]) -> Value {
    let backends: Vec<Value> = backends
        .iter()
        .map(|(service, weight)| json!({"service": service, "weight": weight}))
        .collect();
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "service": apex, "backends": backends },
    })
}
