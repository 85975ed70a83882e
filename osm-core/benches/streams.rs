//! What a stream takes to serve its proxy, and what responses take to encode.

// Each benchmark uses a part of it.
#[allow(dead_code)]
mod town;

use std::sync::Arc;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use osm_core::{
    envoy,
    ir::{ClusterKey, ServiceKey, Settings, TargetPort, UpstreamCluster},
    mesh::Event,
    resource::{Resource, ResourceType},
    xds::{DeltaRequest, DeltaStream, Limits, StateStream},
};
use osm_proto::envoy::service::discovery::v3::DiscoveryRequest;
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
    group.finish();
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
    let upstream = UpstreamCluster { key };
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
