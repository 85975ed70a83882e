//! What a stream takes to serve its proxy, and what responses take to encode.

// Each benchmark uses a part of it.
#[allow(dead_code)]
mod town;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use osm_core::{
    envoy,
    identity::ProxyIdentity,
    ir::{ClusterKey, ServiceKey, Settings, TargetPort, UpstreamCluster},
    mesh::Event,
    resource::{Resource, ResourceType, Snapshot},
    xds::{DeltaRequest, DeltaStream, HeldVersion, Limits, StateStream},
};
use osm_proto::envoy::service::discovery::v3::DiscoveryRequest;
use prost::Message;
use town::{Town, accept, synced};

const TOWN: Town = Town {
    services: 100,
    pods: 10,
    permissive: false,
};

fn streams(criterion: &mut Criterion) {
    let mut engine = TOWN.engine();
    let first = engine.snapshot().clone();
    // Calls the first service, and does not call the last.
    let (caller, other) = (TOWN.proxy(55), TOWN.proxy(7 * 10));
    let mut group = criterion.benchmark_group("stream");
    group.bench_function("from connecting to in sync, five upstreams", |bencher| {
        bencher.iter(|| synced(caller.clone(), &first));
    });
    let everything = Town {
        permissive: true,
        ..TOWN
    }
    .engine()
    .snapshot()
    .clone();
    group.bench_function("from connecting to in sync, 100 upstreams", |bencher| {
        bencher.iter(|| synced(caller.clone(), &everything));
    });
    let change = engine.apply(vec![Event::Upsert(TOWN.slice(0, 9))]);
    let second = change.snapshot.expect("an endpoint has changed");
    for (name, proxy) in [("it uses", &caller), ("it does not use", &other)] {
        group.bench_function(format!("an endpoint changes that {name}"), |bencher| {
            bencher.iter_batched(
                || synced(proxy.clone(), &first),
                |mut stream| {
                    accept(&mut stream, &second);
                    stream
                },
                BatchSize::SmallInput,
            );
        });
    }
    let large = Town {
        services: 1_000,
        pods: 1,
        permissive: true,
    };
    let everything = large.engine().snapshot().clone();
    let proxy = large.proxy(55);
    let requests = returning(&proxy, &everything);
    group.bench_function("coming back with what it has, 1,000 upstreams", |bencher| {
        bencher.iter(|| {
            let mut stream = DeltaStream::new(proxy.clone(), Limits::default());
            let mut sent = 0;
            for request in &requests {
                let request = DeltaRequest::decode(request.clone()).expect("it was encoded");
                let read = stream.on_request(&request, &everything);
                read.expect("a well-formed request");
                sent += stream.next_responses(&everything).len();
            }
            assert_eq!(sent, 0, "it has everything");
            stream
        });
    });
    group.finish();
}

/// What a proxy that has everything sends on a new stream.
fn returning(proxy: &ProxyIdentity, snapshot: &Arc<Snapshot>) -> Vec<Bytes> {
    let class = snapshot.proxy(proxy.uuid).expect("a known proxy").class;
    let view = snapshot.view(class).expect("a class has a view");
    let request = |kind: ResourceType| {
        let names = || {
            view.set(kind)
                .iter()
                .map(|(name, _)| Bytes::from(name.to_string()))
        };
        let held = view.set(kind).iter().map(|(name, slot)| HeldVersion {
            name: name.to_string().into(),
            version: snapshot
                .resource(*slot)
                .expect("all are there")
                .version()
                .to_string()
                .into(),
        });
        let request = DeltaRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: if kind.allows_wildcard() {
                Vec::new()
            } else {
                names().collect()
            },
            initial_resource_versions: held.collect(),
            ..Default::default()
        };
        request.encode_to_vec().into()
    };
    ResourceType::ALL.into_iter().map(request).collect()
}

fn encoding(criterion: &mut Criterion) {
    let snapshot: Arc<_> = Town {
        permissive: true,
        ..TOWN
    }
    .engine()
    .snapshot()
    .clone();
    let proxy = TOWN.proxy(55);
    let mut stream = DeltaStream::new(proxy.clone(), Limits::default());
    let request = DeltaRequest {
        type_url: ResourceType::Cluster.type_url().into(),
        ..Default::default()
    };
    stream
        .on_request(&request, &snapshot)
        .expect("a well-formed request");
    let delta = stream.next_responses(&snapshot).remove(0);
    let mut stream = StateStream::new(proxy, Limits::default());
    let request = DiscoveryRequest {
        type_url: ResourceType::Cluster.type_url().into(),
        ..Default::default()
    };
    stream
        .on_request(&request, &snapshot)
        .expect("a well-formed request");
    let state = stream.next_responses(&snapshot).remove(0);

    let mut group = criterion.benchmark_group("encoding");
    for (name, response) in [("delta", &delta), ("state of the world", &state)] {
        group.throughput(Throughput::Bytes(response.encoded_len() as u64));
        group.bench_function(format!("a response of 100 clusters, {name}"), |bencher| {
            bencher.iter_batched_ref(
                || BytesMut::with_capacity(response.encoded_len()),
                |buffer| response.encode(buffer),
                BatchSize::SmallInput,
            );
        });
    }
    let key = ClusterKey {
        service: ServiceKey::new("town-0", "service-0"),
        target_port: TargetPort::Number(8080),
    };
    let servers = vec!["account-0.town-0.cluster.local".to_owned()];
    let upstream = UpstreamCluster { key, servers };
    let settings = Settings::default();
    group.throughput(Throughput::Elements(1));
    group.bench_function("a cluster, built, encoded and hashed", |bencher| {
        bencher.iter(|| {
            let cluster = envoy::upstream_cluster(&upstream, &settings);
            Resource::new(ResourceType::Cluster, cluster.name.clone(), &cluster)
        });
    });
    group.finish();
}

criterion_group!(benches, streams, encoding);
criterion_main!(benches);
