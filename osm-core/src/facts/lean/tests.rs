//! Objects as an API server writes them, once in YAML and once in protobuf, byte by byte: with the fields that are
//! skipped, and with the empty texts that Go writes where YAML has nothing.

use prost::encoding::{WireType, encode_key, encode_varint};
use serde::de::DeserializeOwned;

use super::{super::*, *};
use crate::ir::{Protocol, TargetPort};

/// One field of a message.
type Field = Vec<u8>;

fn number(tag: u32, value: u64) -> Field {
    let mut field = Vec::new();
    encode_key(tag, WireType::Varint, &mut field);
    encode_varint(value, &mut field);
    field
}

fn text(tag: u32, value: &str) -> Field {
    message(tag, &[value.as_bytes().to_vec()])
}

fn message(tag: u32, fields: &[Field]) -> Field {
    let body = fields.concat();
    let mut field = Vec::new();
    encode_key(tag, WireType::LengthDelimited, &mut field);
    encode_varint(body.len() as u64, &mut field);
    [field, body].concat()
}

fn entry(tag: u32, key: &str, value: &str) -> Field {
    message(tag, &[text(1, key), text(2, value)])
}

/// The metadata of `shop/a` of version 7, created at 2020-01-02T03:04:05Z.
fn metadata(more: &[Field]) -> Field {
    let fields = [
        text(1, "a"),
        text(2, ""),
        text(3, "shop"),
        text(4, ""),
        text(5, "u1"),
        text(6, "7"),
        number(7, 3),
        message(8, &[number(1, 1_577_934_245), number(2, 0)]),
        more.concat(),
        // ownerReferences, finalizers and managedFields.
        message(13, &[text(1, "ReplicaSet"), text(3, "a"), text(4, "u0")]),
        text(14, "example.com/held"),
        message(
            17,
            &[text(1, "kubelet"), message(7, &[text(1, "{\"f:status\":{}}")])],
        ),
    ];
    message(1, &fields)
}

const METADATA: &str = "namespace: shop, name: a, uid: u1, resourceVersion: '7', generation: 3,
    creationTimestamp: '2020-01-02T03:04:05Z', managedFields: [{ manager: kubelet, fieldsV1: { 'f:status': {} } }]";

/// The facts of the object in both spellings.
fn both<K: Wire + DeserializeOwned>(
    from: fn(&K) -> Result<Fact, Diagnostic>,
    yaml: &str,
    fields: &[Field],
) -> [Fact; 2] {
    let yaml: K = serde_saphyr::from_str(&yaml.replace("METADATA", METADATA)).expect("an object");
    let wire = K::decode(Bytes::from(fields.concat())).expect("an object");
    for object in [&yaml, &wire] {
        assert_eq!(
            (object.namespace(), object.name(), object.version()),
            ("shop", "a", Some("7"))
        );
    }
    [from(&yaml).expect("a fact"), from(&wire).expect("a fact")]
}

const UUID: &str = "00000000-0000-0000-0000-000000000007";

#[test]
fn a_pod_is_the_same_in_protobuf() {
    let port = |name: &str, port: u64, protocol: &str| {
        let fields = [
            text(1, name),
            number(2, 0),
            number(3, port),
            text(4, protocol),
            text(5, ""),
        ];
        message(6, &fields)
    };
    let condition = |kind: &str, status: &str| {
        let time = message(4, &[number(1, 1)]);
        message(
            2,
            &[text(1, kind), text(2, status), message(3, &[]), time, text(5, "")],
        )
    };
    let labels = [
        entry(11, "app", "web"),
        entry(11, "osm-proxy-uuid", UUID),
        entry(12, "prometheus.io/scrape", "true"),
        entry(12, "other", "annotation"),
    ];
    let restarts = text(24, "Always");
    let spec = [
        message(1, &[text(1, "volume")]),
        message(
            2,
            &[
                text(1, "c"),
                text(2, "image"),
                port("http", 80, "TCP"),
                port("dns", 53, "UDP"),
                port("", 90, ""),
                port("plain", 91, ""),
            ],
        ),
        text(8, ""),
        text(9, "web"),
        text(10, "node"),
        number(11, 0),
        text(16, ""),
        text(17, "peers"),
        message(20, &[text(1, "once"), port("once", 1, "TCP")]),
        message(20, &[text(1, "side"), port("side", 81, "TCP"), restarts]),
    ];
    let status = [
        text(1, "Running"),
        condition("Ready", "False"),
        condition("ContainersReady", "True"),
        text(6, "10.1.0.1"),
        message(8, &[text(1, "c"), number(4, 1)]),
        message(12, &[text(1, "10.1.0.1")]),
        message(12, &[text(1, "fd00::1")]),
    ];
    let yaml = format!(
        "
        metadata: {{ METADATA, labels: {{ app: web, osm-proxy-uuid: {UUID} }},
          annotations: {{ prometheus.io/scrape: 'true', other: annotation }} }}
        spec:
          serviceAccount: web
          subdomain: peers
          volumes: [{{ name: volume }}]
          initContainers:
          - {{ name: once, ports: [{{ name: once, containerPort: 1 }}] }}
          - {{ name: side, restartPolicy: Always, ports: [{{ name: side, containerPort: 81 }}] }}
          containers:
          - name: c
            ports:
            - {{ name: http, containerPort: 80 }}
            - {{ name: dns, containerPort: 53, protocol: UDP }}
            - {{ containerPort: 90 }}
            - {{ name: plain, containerPort: 91 }}
        status:
          phase: Running
          podIP: 10.1.0.1
          podIPs: [{{ ip: 10.1.0.1 }}, {{ ip: 'fd00::1' }}]
          conditions: [{{ type: Ready, status: 'False' }}, {{ type: ContainersReady, status: 'True' }}]"
    );
    let fields = [metadata(&labels), message(2, &spec), message(3, &status)];
    let [yaml, wire] = both(pod::from, &yaml, &fields);
    assert_eq!(yaml, wire);
    let Fact::Pod(Pod {
        proxy: Some(proxy), ..
    }) = wire
    else {
        panic!("{wire:?}")
    };
    let ports: Vec<_> = proxy.ports.iter().map(|(name, port)| (&**name, *port)).collect();
    assert_eq!(ports, [("http", 80), ("plain", 91), ("side", 81)]);
    assert_eq!((&*proxy.identity.name, proxy.created), ("web", 1_577_934_245));
    assert!(proxy.scraped && proxy.doubted && proxy.hostname.is_none());

    // A gate, and the moment of a deletion: neither is doubted any more.
    let ending = [&labels[..], &[message(9, &[number(1, 1)])]].concat();
    let gated = [&spec[..], &[message(28, &[text(1, "example.com/gate")])]].concat();
    for fields in [
        [metadata(&ending), message(2, &spec), message(3, &status)],
        [metadata(&labels), message(2, &gated), message(3, &status)],
    ] {
        let object = pod::Object::decode(Bytes::from(fields.concat())).expect("an object");
        let Ok(Fact::Pod(Pod {
            proxy: Some(proxy), ..
        })) = pod::from(&object)
        else {
            panic!("{object:?}")
        };
        assert!(!proxy.doubted, "{object:?}");
    }
}

#[test]
fn a_service_is_the_same_in_protobuf() {
    let port = |name: &str, protocol: &str, port: u64, target: [Field; 3], app: &[Field]| {
        let fields = [
            text(1, name),
            text(2, protocol),
            number(3, port),
            message(4, &target),
            number(5, 0),
        ];
        message(1, &[&fields[..], app].concat())
    };
    let to = |kind: u64, value: u64, name: &str| [number(1, kind), number(2, value), text(3, name)];
    let spec = |ip: &str| {
        [
            port("http-alt", "TCP", 8080, to(1, 0, "web"), &[]),
            port("dns", "UDP", 53, to(0, 53, ""), &[]),
            port("", "", 80, to(0, 3306, ""), &[text(6, "tcp")]),
            port("x", "TCP", 90, to(0, 0, ""), &[]),
            entry(2, "app", "web"),
            text(3, ip),
            text(4, "ClusterIP"),
            text(7, "None"),
            text(10, ""),
            message(14, &[message(1, &[number(1, 10_800)])]),
            text(19, "IPv4"),
        ]
    };
    let yaml = |ip: &str| {
        format!(
            "
        metadata: {{ METADATA }}
        spec:
          {ip}
          selector: {{ app: web }}
          ports:
          - {{ name: http-alt, port: 8080, targetPort: web }}
          - {{ name: dns, port: 53, protocol: UDP }}
          - {{ port: 80, targetPort: 3306, appProtocol: tcp }}
          - {{ name: x, port: 90 }}
        status: {{ loadBalancer: {{}} }}"
        )
    };
    let status = message(3, &[message(1, &[])]);
    for (ip, spelled, addresses, headless) in [
        ("10.0.0.7", "clusterIP: 10.0.0.7", 1, false),
        ("None", "clusterIP: None", 0, true),
        ("", "", 0, false),
    ] {
        let fields = [metadata(&[]), message(2, &spec(ip)), status.clone()];
        let [yaml, wire] = both(service::from, &yaml(spelled), &fields);
        assert_eq!(yaml, wire);
        let Fact::Service(fact) = wire else {
            panic!("{wire:?}")
        };
        assert_eq!(
            (fact.addresses.len(), fact.headless),
            (addresses, headless),
            "{ip}"
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
    }
}

#[test]
fn a_slice_is_the_same_in_protobuf() {
    let target = |namespace: &str, name: &str, uid: &str| {
        let fields = [
            text(1, "Pod"),
            text(2, namespace),
            text(3, name),
            text(4, uid),
            text(5, ""),
            text(6, ""),
        ];
        message(4, &fields)
    };
    let endpoint = |address: &str, conditions: &[Field], more: &[Field]| {
        let node = text(6, "node");
        message(
            2,
            &[text(1, address), message(2, conditions), more.concat(), node],
        )
    };
    let ending = [number(1, 0), number(2, 1), number(3, 1)];
    let fields = [
        metadata(&[entry(11, "kubernetes.io/service-name", "web")]),
        endpoint("10.1.0.2", &[number(1, 1)], &[target("shop", "b", "u2")]),
        endpoint("10.1.0.1", &[], &[text(3, ""), target("", "a", "")]),
        endpoint("10.1.0.3", &ending, &[target("shop", "c", "")]),
        endpoint(
            "10.1.0.4",
            &[number(1, 0)],
            &[text(3, "d-0"), target("shop", "d", "")],
        ),
        endpoint("10.1.0.5", &[], &[target("other", "e", "")]),
        endpoint("10.1.0.6", &[], &[target("shop", "", "")]),
        endpoint("10.1.0.7", &[], &[]),
        message(3, &[text(1, "http"), text(2, "TCP"), number(3, 8080)]),
        message(3, &[text(1, ""), text(2, ""), number(3, 8081)]),
        message(3, &[text(1, "dns"), text(2, "UDP"), number(3, 53)]),
        message(3, &[text(1, "all")]),
        text(4, "IPv4"),
    ];
    let yaml = "
        metadata: { METADATA, labels: { kubernetes.io/service-name: web } }
        addressType: IPv4
        ports: [{ name: http, port: 8080 }, { port: 8081 }, { name: dns, port: 53, protocol: UDP }, { name: all }]
        endpoints:
        - { addresses: [10.1.0.2], conditions: { ready: true }, targetRef: { kind: Pod, namespace: shop, name: b, uid: u2 } }
        - { addresses: [10.1.0.1], targetRef: { kind: Pod, name: a } }
        - { addresses: [10.1.0.3], conditions: { ready: false, serving: true, terminating: true }, targetRef: { kind: Pod, namespace: shop, name: c } }
        - { addresses: [10.1.0.4], conditions: { ready: false }, hostname: d-0, targetRef: { kind: Pod, namespace: shop, name: d } }
        - { addresses: [10.1.0.5], targetRef: { kind: Pod, namespace: other, name: e } }
        - { addresses: [10.1.0.6], targetRef: { kind: Pod } }
        - { addresses: [10.1.0.7] }";
    let [yaml, wire] = both(endpoint_slice::from, yaml, &fields);
    assert_eq!(yaml, wire);
    let Fact::EndpointSlice(fact) = wire else {
        panic!("{wire:?}")
    };
    let endpoints: Vec<_> = fact
        .endpoints
        .iter()
        .map(|endpoint| (&*endpoint.pod, endpoint.hostname.as_deref(), endpoint.ready))
        .collect();
    assert_eq!(
        endpoints,
        [("a", None, true), ("b", None, true), ("d", Some("d-0"), false)]
    );
    assert_eq!(fact.ports, [("".into(), 8081), ("http".into(), 8080)]);
}

#[test]
fn a_list_that_is_null_is_empty() {
    let yaml =
        "{ metadata: { namespace: shop, name: a, resourceVersion: '7', creationTimestamp: null, labels: null,
        annotations: null }, endpoints: null, ports: null }";
    let [yaml, wire] = both(
        endpoint_slice::from,
        yaml,
        &[message(
            1,
            &[text(1, "a"), text(3, "shop"), text(6, "7"), message(8, &[])],
        )],
    );
    assert_eq!(yaml, wire);
    let never = [message(8, &[]), message(9, &[])].concat();
    let never = Metadata::decode(Bytes::from(never)).expect("metadata");
    assert_eq!((never.created(), never.is_ending()), (i64::MAX, false));
}

#[test]
fn annotations_are_slices_of_what_was_received() {
    let received = Bytes::from(entry(12, "key", "value"));
    let metadata = Metadata::decode(received.clone()).expect("metadata");
    assert_eq!(metadata.annotation("key"), Some("value"));
    assert_eq!(metadata.annotation("other"), None);
    let at = metadata.annotations[0].value.as_ptr();
    assert!(received.as_ptr_range().contains(&at));
}
