use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::*;
use crate::ir::{HttpMatch, Protocol, TargetPort};

/// An object from its YAML.
fn object<T: DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).expect("an object")
}

fn service(yaml: &str) -> Service {
    match service::from(&object(yaml)) {
        Ok(Fact::Service(fact)) => fact,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_keeps_its_tcp_ports_and_addresses() {
    let fact = service(
        "
        metadata: { namespace: shop, name: web, resourceVersion: '7', creationTimestamp: '2020-01-02T03:04:05Z' }
        spec:
          clusterIP: 10.0.0.7
          clusterIPs: ['fd00::7', 10.0.0.7]
          selector: { app: web }
          ports:
          - { name: http-alt, port: 8080, targetPort: web }
          - { name: dns, port: 53, protocol: UDP }
          - { name: tcp-db, port: 80, targetPort: 3306 }
          - { name: x, port: 90 }
        status: { loadBalancer: {} }",
    );
    assert_eq!(
        fact.addresses,
        [
            "10.0.0.7".parse::<std::net::IpAddr>().unwrap(),
            "fd00::7".parse().unwrap()
        ]
    );
    let ports: Vec<_> = fact
        .ports
        .iter()
        .map(|port| (port.number, port.target.clone(), port.protocol))
        .collect();
    let expected = [
        (80, TargetPort::Number(3306), Protocol::Tcp),
        (90, TargetPort::Number(90), Protocol::Http),
        (8080, TargetPort::Name("web".into()), Protocol::Http),
    ];
    assert_eq!(ports, expected);
    assert_eq!(fact.created, 1_577_934_245);
}

#[test]
fn a_slice_keeps_pods_that_do_not_end() {
    let yaml = "
        metadata: { namespace: shop, name: web-1, labels: { kubernetes.io/service-name: web } }
        addressType: IPv4
        ports: [{ name: http, port: 8080 }, { name: dns, port: 53, protocol: UDP }]
        endpoints:
        - { addresses: [10.1.0.2], conditions: { ready: true }, targetRef: { kind: Pod, name: b, uid: u2 } }
        - { addresses: [10.1.0.1], targetRef: { kind: Pod, namespace: shop, name: a } }
        - { addresses: [10.1.0.3], conditions: { ready: false, serving: true, terminating: true }, targetRef: { kind: Pod, name: c } }
        - { addresses: [10.1.0.6], conditions: { ready: false, serving: false }, targetRef: { kind: Pod, name: f } }
        - { addresses: [10.1.0.7], conditions: { ready: true, terminating: true }, targetRef: { kind: Pod, name: g } }
        - { addresses: [10.1.0.4], targetRef: { kind: Node, name: d } }
        - { addresses: [10.1.0.5], targetRef: { kind: Pod, namespace: other, name: e } }
        - { addresses: [169.254.169.254] }";
    let Ok(Fact::EndpointSlice(fact)) = endpoint_slice::from(&object(yaml)) else {
        panic!()
    };
    let endpoints = fact.endpoints.iter();
    let pods: Vec<_> = endpoints
        .map(|endpoint| (&*endpoint.pod, endpoint.ready))
        .collect();
    assert_eq!(pods, [("a", true), ("b", true), ("f", false), ("g", true)]);
    assert_eq!(fact.ports, [("http".into(), 8080)]);
}

#[test]
fn a_pod_is_doubted_when_its_node_is_and_not_its_containers() {
    let doubted = |metadata: &str, spec: &str, ready: &str, containers: &str| {
        let yaml = format!(
            "
            metadata: {{ namespace: shop, name: a, {metadata} labels: {{ osm-proxy-uuid: 00000000-0000-0000-0000-000000000007 }} }}
            spec: {{ {spec} containers: [] }}
            status:
              conditions: [{{ type: Ready, status: '{ready}' }}, {{ type: ContainersReady, status: '{containers}' }}]"
        );
        match pod::from(&object(&yaml)) {
            Ok(Fact::Pod(fact)) => fact.proxy.expect("a proxy").doubted,
            other => panic!("{other:?}"),
        }
    };
    assert!(doubted("", "", "False", "True"));
    assert!(!doubted("", "", "True", "True"));
    assert!(!doubted("", "", "False", "False"), "its kubelet says so");
    let gates = "readinessGates: [{ conditionType: example.com/gate }],";
    assert!(!doubted("", gates, "False", "True"), "a gate says so");
    let ending = "deletionTimestamp: '2026-01-01T00:00:00Z',";
    assert!(!doubted(ending, "", "False", "True"));
}

#[test]
fn all_that_is_read_of_a_pod_is_decoded() {
    // As an API server has it, with what is skipped: lists of volumes, statuses of containers, who manages which field.
    let yaml = "
        apiVersion: v1
        kind: Pod
        metadata:
          namespace: shop
          name: a
          uid: u1
          resourceVersion: '7'
          creationTimestamp: '2020-01-02T03:04:05Z'
          annotations: { other: annotation, prometheus.io/scrape: 'true' }
          labels: { app: web, osm-proxy-uuid: 00000000-0000-0000-0000-000000000007 }
          managedFields: [{ manager: kubelet, operation: Update, fieldsV1: { 'f:status': { 'f:phase': {} } } }]
          ownerReferences: [{ apiVersion: apps/v1, kind: ReplicaSet, name: a, uid: u0 }]
        spec:
          serviceAccount: old
          serviceAccountName: web
          hostname: a-0
          subdomain: peers
          volumes: [{ name: v, emptyDir: { medium: Memory } }]
          initContainers:
          - { name: once, image: i, ports: [{ name: once, containerPort: 1 }] }
          - { name: side, image: i, restartPolicy: Always, ports: [{ name: side, containerPort: 81 }] }
          containers:
          - { name: c, image: i, ports: [{ name: http, containerPort: 80 }, { name: dns, containerPort: 53, protocol: UDP }] }
        status:
          phase: Running
          podIP: 10.1.0.1
          podIPs: [{ ip: 10.1.0.1 }, { ip: 'fd00::1' }]
          conditions: [{ type: Ready, status: 'True', lastTransitionTime: '2020-01-02T03:04:05Z' }]
          containerStatuses: [{ name: c, image: i, imageID: '', ready: true, restartCount: 0 }]";
    let Ok(Fact::Pod(fact)) = pod::from(&object(yaml)) else {
        panic!()
    };
    let texts = |pairs: [(&str, &str); 2]| {
        let pairs = pairs.into_iter();
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    };
    let expected = pod::Proxy {
        uuid: uuid::Uuid::from_u128(7),
        uid: "u1".into(),
        created: 1_577_934_245,
        identity: crate::identity::ServiceIdentity::new("shop", "web"),
        labels: texts([
            ("app", "web"),
            ("osm-proxy-uuid", "00000000-0000-0000-0000-000000000007"),
        ]),
        addresses: vec!["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ports: BTreeMap::from([("http".into(), 80), ("side".into(), 81)]),
        hostname: Some("a-0".into()),
        subdomain: Some("peers".into()),
        scraped: true,
        doubted: false,
    };
    assert_eq!(fact.proxy.as_deref(), Some(&expected));
    assert_eq!((&*fact.namespace, &*fact.name), ("shop", "a"));
    let read: pod::Object = object(yaml);
    assert_eq!(
        lean::Identified::version(&read),
        Some("7"),
        "a watch goes on from there"
    );
}

#[test]
fn a_pod_without_a_sidecar_or_past_its_end_is_no_proxy() {
    let pod = |label: &str, phase: &str| {
        let yaml = format!(
            "
            metadata: {{ namespace: shop, name: a, labels: {{ app: web, {label} }} }}
            spec: {{ serviceAccountName: web, containers: [{{ name: c, ports: [{{ name: http, containerPort: 8080 }}] }}] }}
            status: {{ phase: {phase}, podIP: 10.1.0.1 }}"
        );
        pod::from(&object(&yaml))
    };
    let label = "osm-proxy-uuid: 00000000-0000-0000-0000-000000000007";
    let Ok(Fact::Pod(fact)) = pod(label, "Running") else {
        panic!()
    };
    let proxy = fact.proxy.expect("a proxy");
    assert_eq!((proxy.uuid.as_u128(), proxy.ports["http"]), (7, 8080));
    for (label, phase) in [
        (label, "Succeeded"),
        (label, "Failed"),
        ("other: label", "Running"),
    ] {
        assert!(
            matches!(pod(label, phase), Ok(Fact::Pod(Pod { proxy: None, .. }))),
            "{label} {phase}"
        );
    }
    for label in [
        "osm-proxy-uuid: x",
        "osm-proxy-uuid: '00000000000000000000000000000007'",
    ] {
        assert_eq!(pod(label, "Running").expect_err(label).reason, "InvalidProxyUuid");
    }
}

#[test]
fn a_target_must_grant_something_in_its_own_namespace() {
    let target = |destination: &str, rules: &str, sources: &str| {
        let yaml = format!(
            "
            metadata: {{ namespace: shop, name: t }}
            spec: {{ destination: {destination}, rules: {rules}, sources: {sources} }}"
        );
        traffic_target::from(&object(&yaml))
    };
    let here = "{ kind: ServiceAccount, name: web, namespace: shop }";
    let http = "[{ kind: HTTPRouteGroup, name: g }]";
    let Ok(Fact::TrafficTarget(fact)) = target(
        "{ kind: ServiceAccount, name: web }",
        "[{ kind: TCPRoute, name: r }, { kind: HTTPRouteGroup, name: g, matches: [b, a, b] }]",
        "[{ kind: ServiceAccount, name: buyer, namespace: b }, { kind: ServiceAccount, name: x.y }]",
    ) else {
        panic!()
    };
    assert_eq!(fact.destination.to_string(), "web.shop");
    assert_eq!(
        fact.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["buyer.b", "x.y.shop"]
    );
    let group = traffic_target::Rule::Http {
        group: "g".into(),
        matches: vec!["a".into(), "b".into()],
    };
    assert_eq!(
        fact.rules,
        [group, traffic_target::Rule::Tcp { route: "r".into() }]
    );

    for (reason, destination, rules, sources) in [
        (
            "InvalidDestination",
            "{ kind: ServiceAccount, name: web, namespace: other }",
            http,
            "[]",
        ),
        ("InvalidDestination", "{ kind: Group, name: web }", http, "[]"),
        (
            "InvalidDestination",
            "{ kind: ServiceAccount, name: 'we*b' }",
            http,
            "[]",
        ),
        (
            "InvalidSource",
            here,
            http,
            "[{ kind: ServiceAccount, name: x, namespace: 'a.b' }]",
        ),
        ("NoRules", here, "[]", "[]"),
        ("InvalidRule", here, "[{ kind: UDPRoute, name: r }]", "[]"),
    ] {
        assert_eq!(
            target(destination, rules, sources).expect_err(destination).reason,
            reason
        );
    }
}

#[test]
fn a_split_names_services_of_its_namespace_in_any_spelling() {
    let split = |apex: &str, backends: &str| {
        let yaml = format!(
            "{{ metadata: {{ namespace: shop, name: s }}, spec: {{ service: {apex}, backends: {backends} }} }}"
        );
        traffic_split::from(&object(&yaml))
    };
    for apex in [
        "web",
        "web.shop",
        "web.shop.svc",
        "web.shop.svc.cluster",
        "web.shop.svc.cluster.local",
        "web.shop.",
    ] {
        let Ok(Fact::TrafficSplit(fact)) = split(
            apex,
            "[{ service: v1, weight: 1 }, { service: v1.shop, weight: 2 }]",
        ) else {
            panic!("{apex}")
        };
        assert_eq!(
            (&*fact.apex, &fact.backends),
            ("web", &BTreeMap::from([("v1".into(), 3)]))
        );
    }
    for (reason, apex, backends) in [
        ("InvalidService", "web.other", "[{ service: v1, weight: 1 }]"),
        ("InvalidService", "''", "[{ service: v1, weight: 1 }]"),
        (
            "InvalidService",
            "web.shop.svc.example",
            "[{ service: v1, weight: 1 }]",
        ),
        ("InvalidBackend", "web", "[{ service: v1.other, weight: 1 }]"),
        ("NoBackends", "web", "[]"),
        ("InvalidWeight", "web", "[{ service: v1, weight: 0 }]"),
        (
            "InvalidWeight",
            "web",
            "[{ service: v1, weight: -1 }, { service: v2, weight: 2 }]",
        ),
        (
            "InvalidWeight",
            "web",
            "[{ service: v1, weight: 4294967295 }, { service: v2, weight: 1 }]",
        ),
    ] {
        assert_eq!(
            split(apex, backends).expect_err(apex).reason,
            reason,
            "{apex} {backends}"
        );
    }
}

#[test]
fn a_bad_match_harms_only_itself() {
    let yaml = "
        metadata: { namespace: shop, name: g }
        spec:
          matches:
          - { name: all }
          - { name: buy, pathRegex: /buy, methods: [POST, GET], headers: [{ Host: web.*, X-Client: 'a|b' }] }
          - { name: bad, pathRegex: '(' }
          - { name: header, headers: [{ 'x y': a }] }
          - { name: pseudo, headers: [{ ':path': a }] }
          - { name: method, methods: ['GE T'] }
          - { name: any, pathRegex: .*, methods: ['*', GET] }";
    let Ok(Fact::HTTPRouteGroup(fact)) = http_route_group::from(&object(yaml)) else {
        panic!()
    };
    assert_eq!(fact.problems.len(), 4, "{:?}", fact.problems);
    assert_eq!(fact.matches["all"], [HttpMatch::default()]);
    assert_eq!(fact.matches["any"], [HttpMatch::default()]);
    let headers: Vec<_> = fact.matches["buy"][0]
        .headers
        .keys()
        .map(|name| &**name)
        .collect();
    assert_eq!(headers, [":authority", "x-client"]);
    let methods: Vec<_> = fact.matches["buy"]
        .iter()
        .filter_map(|shape| shape.method.as_deref())
        .collect();
    assert_eq!(methods, ["GET", "POST"]);
}

#[test]
fn only_expressions_that_re2_reads_alike_pass() {
    for good in [
        ".*",
        "/a/b",
        "^/a$",
        r"/\d+(\.\w+)?",
        "(?i)abc",
        "(?P<n>a)b",
        "[^/]+",
        "a{1,1000}",
        "(a{10}){100}",
        r"\p{Lu}\pL",
        r"\x{10FFFF}",
        "[[:alpha:]]+",
        "a+?b*?",
        r"\Aa\z",
        r"\/\-",
        "",
    ] {
        assert_eq!(pattern::check(good), Ok(()), "{good}");
    }
    for bad in [
        "(",
        "a**",
        "a{1001}",
        "(a{10}){101}",
        "(?x) a",
        "[a&&b]",
        "[[a]b]",
        r"\u0041",
        "(?<n>a)",
        r"\p{Greek}",
        r"(?=a)",
        r"\1",
        r"\b{start}",
        r"\<a",
        "a{1000}{2}",
        "[",
        &"a".repeat(1_025),
        &format!("{}a{}", "(".repeat(200), ")".repeat(200)),
        r"(\w{1000}){1}",
        "\0",
    ] {
        assert!(pattern::check(bad).is_err(), "{bad}");
    }
}

#[test]
fn mesh_config_values_are_checked() {
    let config = |spec: &str| {
        let yaml =
            format!("{{ metadata: {{ namespace: osm-system, name: osm-mesh-config }}, spec: {spec} }}");
        mesh_config::from(&object(&yaml))
    };
    let Ok(Fact::MeshConfig(fact)) = config("{ observability: { tracing: { enable: true } } }") else {
        panic!()
    };
    let tracing = fact.settings.tracing.expect("tracing");
    assert_eq!(
        (&*tracing.address, tracing.port),
        ("jaeger.osm-system.svc.cluster.local", 9411)
    );
    assert_eq!((fact.settings.tls.minimum, fact.settings.tls.maximum), (3, 4));
    for (validity, seconds) in [
        ("24h", 86_400),
        ("nonsense", 86_400),
        ("1s", 600),
        ("1h30m", 5_400),
    ] {
        let Ok(Fact::MeshConfig(fact)) = config(&format!(
            "{{ certificate: {{ serviceCertValidityDuration: {validity} }} }}"
        )) else {
            panic!("{validity}")
        };
        assert_eq!(
            fact.control.service_certificate_validity.as_secs(),
            seconds,
            "{validity}"
        );
    }
    for bad in [
        "{ sidecar: { tlsMinProtocolVersion: SSLv3 } }",
        "{ sidecar: { tlsMinProtocolVersion: TLSv1_3, tlsMaxProtocolVersion: TLSv1_2 } }",
        "{ sidecar: { cipherSuites: [ROT13] } }",
        "{ sidecar: { ecdhCurves: [P-1] } }",
        "{ observability: { osmLogLevel: loud } }",
        "{ observability: { tracing: { enable: true, port: 65536 } } }",
        "{ observability: { tracing: { enable: true, address: 'a b' } } }",
        "{ observability: { tracing: { enable: true, endpoint: spans } } }",
        "{ traffic: { inboundExternalAuthorization: { enable: true, address: authz } } }",
        "{ traffic: { inboundExternalAuthorization: { enable: true, address: authz, port: 1, timeout: soon } } }",
    ] {
        assert_eq!(config(bad).expect_err(bad).reason, "InvalidMeshConfig");
    }
}

#[test]
fn messages_are_cut() {
    let key = FactKey::new(FactKind::Service, "a", "b");
    assert!(Diagnostic::new(key, "X", "é".repeat(2_000)).message.len() <= Diagnostic::MAX_MESSAGE);
}
