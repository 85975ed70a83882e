//! What the engine takes to compute a mesh, and a change of it.

// Each benchmark uses a part of it.
#[allow(dead_code)]
mod town;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use osm_core::mesh::Event;
use town::Town;

const LARGE: Town = Town {
    services: 1_000,
    pods: 10,
    permissive: false,
};

fn cold(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine, from nothing");
    group.sample_size(10);
    for (name, services) in [
        ("100 services, 1,000 pods", 100),
        ("1,000 services, 10,000 pods", 1_000),
    ] {
        let town = Town { services, ..LARGE };
        group.bench_function(name, |bencher| bencher.iter(|| town.engine()));
    }
    group.finish();
}

fn changes(criterion: &mut Criterion) {
    let mut engine = LARGE.engine();
    let mut group = criterion.benchmark_group("engine, 1,000 services, 10,000 pods");
    let mut turn = false;
    let mut between = |name: &str, events: &dyn Fn(bool) -> Event| {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    turn = !turn;
                    vec![events(turn)]
                },
                |events| engine.apply(events),
                BatchSize::PerIteration,
            );
        });
    };
    between("an endpoint of one service", &|ready| {
        Event::Upsert(LARGE.slice(0, if ready { 10 } else { 9 }))
    });
    between("who may call one service", &|fewer| {
        Event::Upsert(LARGE.target(0, fewer))
    });
    between("a write that means nothing", &|_| Event::Upsert(LARGE.pod(77)));
    between("a pod goes and comes", &|there| {
        let fact = LARGE.pod(77);
        if there {
            Event::Upsert(fact)
        } else {
            Event::Remove(fact.key())
        }
    });
    group.sample_size(10);
    group.bench_function("permissive mode on and off", |bencher| {
        bencher.iter(|| {
            engine.apply(vec![Event::Upsert(Town::config(true))]);
            engine.apply(vec![Event::Upsert(Town::config(false))])
        });
    });
    group.finish();
}

criterion_group!(benches, cold, changes);
criterion_main!(benches);
