//! The engine from outside: whatever happens, in whatever order and however batched, it publishes what a fresh engine
//! would that is told the outcome; it wakes whoever is concerned; and what it publishes hangs together.

mod consistency;
mod endpoints;
mod listeners;
mod mesh;
mod script;
mod view;

use std::{collections::BTreeSet, sync::Arc};

use consistency::Consistency;
use osm_core::{
    mesh::{Change, Engine, Event},
    resource::Snapshot,
};
use proptest::prelude::*;
use script::{Model, Step};

/// An engine, and what it should know.
struct Run {
    engine: Engine,
    model: Model,
    consistency: Consistency,
}

impl Run {
    fn new() -> Self {
        Self {
            engine: Engine::new(mesh::options()),
            model: Model::default(),
            consistency: Consistency::default(),
        }
    }

    /// Applies a batch and checks everything that must hold after it.
    fn apply(&mut self, events: Vec<Event>) -> Change {
        for event in &events {
            self.model.note(event);
        }
        let before = Arc::clone(self.engine.snapshot());
        let change = self.engine.apply(events);
        let after = self.engine.snapshot();
        match &change.snapshot {
            Some(snapshot) => {
                assert!(Arc::ptr_eq(snapshot, after) && snapshot.revision == before.revision + 1)
            }
            None => assert!(
                Arc::ptr_eq(&before, after) && change.classes.is_empty(),
                "changed and did not say"
            ),
        }
        woken(&before, after, &change);
        for (_, proxy) in after.proxies() {
            self.consistency.check(after, proxy.class);
        }
        change
    }

    fn compare_with_fresh(&self) {
        let mut fresh = Engine::new(mesh::options());
        let events = self.model.events();
        let change = fresh.apply(events);
        assert_eq!(
            view::proxies(fresh.snapshot()),
            view::proxies(self.engine.snapshot())
        );
        let identities = |engine: &Engine| engine.identities().cloned().collect::<Vec<_>>();
        assert_eq!(identities(&fresh), identities(&self.engine));
        assert_eq!(change.appeared, identities(&fresh));
        let diagnostics = |engine: &Engine| engine.diagnostics().cloned().collect::<Vec<_>>();
        assert_eq!(diagnostics(&fresh), diagnostics(&self.engine));
        assert_eq!(fresh.control(), self.engine.control());
    }
}

/// Whoever is not woken must have nothing to look for.
fn woken(before: &Snapshot, after: &Snapshot, change: &Change) {
    let woken: BTreeSet<_> = change.classes.iter().copied().collect();
    for (uuid, proxy) in before.proxies() {
        if woken.contains(&proxy.class) {
            continue;
        }
        assert_eq!(
            after.proxy(*uuid),
            Some(proxy),
            "a proxy moved and its class was not woken"
        );
        assert_eq!(
            view::resources(before, proxy.class),
            view::resources(after, proxy.class),
            "a class changed and was not woken"
        );
    }
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(default),
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn incremental_equals_from_scratch(batches in prop::collection::vec(prop::collection::vec(script::step(), 1..5), 1..25)) {
        let mut run = Run::new();
        run.apply(mesh::baseline());
        for batch in batches {
            let events = batch.iter().map(|step| step.event(&run.model)).collect();
            run.apply(events);
            run.compare_with_fresh();
        }
        // What is told twice changes nothing and costs nothing.
        let change = run.apply(run.model.known());
        prop_assert!(change.snapshot.is_none() && change.recomputed == 0 && change.diagnostics.is_empty());
    }

    #[test]
    fn the_order_and_the_batches_do_not_matter(
        steps in prop::collection::vec(script::step(), 1..40),
        order in any::<u64>(),
        cuts in prop::collection::btree_set(0_usize..200, 0..12),
    ) {
        let mut model = Model::default();
        for event in mesh::baseline() {
            model.note(&event);
        }
        for step in steps {
            let event = step.event(&model);
            model.note(&event);
        }
        let mut fresh = Engine::new(mesh::options());
        fresh.apply(model.events());

        let mut run = Run::new();
        let mut batch = Vec::new();
        for (index, event) in script::shuffled(model.events(), order).into_iter().enumerate() {
            batch.push(event);
            if cuts.contains(&index) {
                run.apply(std::mem::take(&mut batch));
            }
        }
        run.apply(batch);
        prop_assert_eq!(view::proxies(fresh.snapshot()), view::proxies(run.engine.snapshot()));
    }
}

#[test]
fn two_processes_give_equal_versions() {
    let mut run = Run::new();
    run.apply(mesh::baseline());
    let mut listing = view::listing(run.engine.snapshot());
    for seed in 0..60_u64 {
        let event = Step::from_seed(seed).event(&run.model);
        run.apply(vec![event]);
        listing += &view::listing(run.engine.snapshot());
    }
    if std::env::var_os("OSM_PRINT_VERSIONS").is_some() {
        println!("VERSIONS BEGIN\n{listing}VERSIONS END");
        return;
    }
    // This very program again, in two processes of their own: other addresses, other hash seeds.
    for _ in 0..2 {
        let program = std::env::current_exe().expect("this program");
        let output = std::process::Command::new(program)
            .args(["--exact", "two_processes_give_equal_versions", "--nocapture"])
            .env("OSM_PRINT_VERSIONS", "1")
            .output()
            .expect("another process");
        let output = String::from_utf8(output.stdout).expect("text");
        let other = output
            .split("VERSIONS BEGIN\n")
            .nth(1)
            .and_then(|rest| rest.split("VERSIONS END").next());
        assert!(listing.lines().count() > 1_000);
        assert_eq!(other, Some(&*listing));
    }
}
