//! What a connected proxy costs in memory: a gate, by counted bytes and not by what an allocator makes of them.

#[path = "../benches/town/mod.rs"]
// The gate uses a part of it.
#[allow(dead_code)]
mod town;

use dhat::HeapStats;
use osm_core::{
    facts::{Fact, Pod},
    mesh::Event,
};
use town::{Town, accept, synced};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Bytes a proxy's stream may hold when all is quiet. Measured: 1,456 in either mode, of it 120 for what comparisons came to.
const STREAM: usize = 1_470;
/// Bytes a further pod may cost the engine: its fact, its place in tables, its endpoint. Measured: 2,463 in either mode.
const POD: usize = 2_710;

/// Pods that are replaced before and, twice as many, while it is measured what that leaves behind.
const CHURN: usize = 600;

fn held() -> usize {
    HeapStats::get().curr_bytes
}

/// One test, because the allocator counts for the whole process.
#[test]
fn a_proxy_costs_little_and_changes_leave_nothing_behind() {
    let _profiler = dhat::Profiler::builder().testing().build();
    // Where TrafficTargets say who may call whom, and where everyone is sent everything there is.
    for permissive in [false, true] {
        keeps(&Town {
            services: 40,
            pods: 5,
            permissive,
        });
    }
}

fn keeps(town: &Town) {
    let mode = if town.permissive { "permissive" } else { "SMI" };
    let before = held();
    let mut engine = town.engine();
    let small = held() - before;
    let larger = Town { pods: 10, ..*town }.engine();
    let each = (held() - before - small).saturating_sub(small) / (40 * 5);
    drop(larger);
    assert!(
        each <= POD,
        "{mode}: a pod costs the engine {each} bytes: more than {POD}"
    );

    let snapshot = engine.snapshot().clone();
    let before = held();
    let mut streams: Vec<_> = (0..200)
        .map(|number| synced(town.proxy(number), &snapshot))
        .collect();
    let each = (held() - before) / streams.len();
    assert!(
        each <= STREAM,
        "{mode}: a stream holds {each} bytes: more than {STREAM}"
    );

    // What a change brought is held once by all, and what it replaced by nobody.
    let mut change = |ready| {
        let events = vec![
            Event::Upsert(town.slice(0, ready)),
            Event::Upsert(town.target(3, ready == 5)),
        ];
        engine.apply(events);
        let snapshot = engine.snapshot().clone();
        streams.iter_mut().for_each(|stream| {
            accept(stream, &snapshot);
        });
    };
    change(4);
    change(5);
    drop(snapshot);
    let before = held();
    for _ in 0..10 {
        change(4);
        change(5);
    }
    let grown = held().saturating_sub(before);
    assert!(
        grown <= 4_096,
        "{mode}: twenty changes and back left {grown} bytes"
    );

    // Pods are replaced one after another, and streams look at what became of it only now and then: each holds an old
    // snapshot meanwhile. However many there have been, no more is held.
    let mut turn = 0;
    let mut churn = |replacements: usize| {
        for _ in 0..replacements {
            turn += 1;
            let number = turn % (town.services * town.pods);
            let service = number / town.pods;
            let mut pod = town.pod(number);
            let key = pod.key();
            if let Fact::Pod(Pod {
                proxy: Some(proxy), ..
            }) = &mut pod
            {
                (proxy.uid, proxy.created) = (format!("{turn:036}").into(), turn as i64);
            }
            for event in [
                Event::Upsert(town.slice(service, town.pods - 1)),
                Event::Remove(key),
                Event::Upsert(pod),
                Event::Upsert(town.slice(service, town.pods)),
            ] {
                engine.apply(vec![event]);
            }
            let index = turn % streams.len();
            accept(&mut streams[index], engine.snapshot());
        }
    };
    churn(CHURN);
    let before = held();
    churn(2 * CHURN);
    let grown = held().saturating_sub(before);
    assert!(
        grown <= before / 50,
        "{mode}: {} pods were replaced, which left {grown} bytes; {before} were held",
        2 * CHURN
    );
}
