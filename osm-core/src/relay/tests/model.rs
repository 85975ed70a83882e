//! Random lives of a proxy, its relay and the controller.
//!
//! In the end the store holds what the proxy has accepted, and a proxy that starts from it alone has the same.

use ResourceType::{Endpoint, Route, Secret};
use proptest::prelude::*;

use super::*;
use crate::xds::tests::resource;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const NAMED: [ResourceType; 3] = [Endpoint, Route, Secret];

/// Content the proxy refuses.
fn is_bad(kind: ResourceType, name: &str, version: &str) -> bool {
    (0..30)
        .filter(|value| value % 6 == 5)
        .any(|value| resource(kind, name, value).version().to_string() == version)
}

#[derive(Clone, Debug)]
enum Step {
    Set(ResourceType, &'static str, u32),
    Remove(ResourceType, &'static str),
    Pend(&'static str),
    Publish,
    Take,
    Subscribe(ResourceType, &'static str),
    Unsubscribe(ResourceType, &'static str),
    Settle,
    /// The controller dies, and another answers.
    Reconnect,
    /// The controller dies, and none answers.
    StandBy,
    RestartProxy,
    /// The relay dies, with so many bytes of its last write lost.
    RestartRelay(usize),
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(ResourceType::ALL.to_vec());
    let named = prop::sample::select(NAMED.to_vec());
    let name = prop::sample::select(NAMES.to_vec());
    prop_oneof![
        8 => (kind.clone(), name.clone(), 0..30_u32).prop_map(|(kind, name, value)| Step::Set(kind, name, value)),
        3 => (kind, name.clone()).prop_map(|(kind, name)| Step::Remove(kind, name)),
        1 => name.clone().prop_map(Step::Pend),
        6 => Just(Step::Publish),
        8 => Just(Step::Take),
        4 => (named.clone(), name.clone()).prop_map(|(kind, name)| Step::Subscribe(kind, name)),
        2 => (named, name).prop_map(|(kind, name)| Step::Unsubscribe(kind, name)),
        3 => Just(Step::Settle),
        2 => Just(Step::Reconnect),
        2 => Just(Step::StandBy),
        1 => Just(Step::RestartProxy),
        1 => (0..80_usize).prop_map(Step::RestartRelay),
        1 => Just(Step::Compact),
    ]
}

/// Nobody answers before the store is a whole configuration; the shell does not ask it then.
fn stand_by(world: &World, disk: &mut Disk, proxy: &mut Proxy) {
    if disk.store.is_complete() {
        proxy.stand_by(world, disk);
    } else {
        proxy.connect(world, disk);
    }
}

proptest! {
    #[test]
    fn what_the_proxy_accepted_is_what_is_kept(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        world.publish();
        let (mut disk, mut proxy) = (Disk::new(), Proxy::new());
        proxy.connect(&world, &mut disk);
        for step in steps {
            match step {
                Step::Set(kind, name, value) => { world.set(kind, name, value); }
                Step::Remove(kind, name) => { world.remove(kind, name); }
                Step::Pend(name) => { world.pend(Secret, name); }
                Step::Publish => {
                    world.publish();
                    proxy.receive(&world);
                }
                Step::Take => { proxy.take(&world, &mut disk, is_bad); }
                Step::Subscribe(kind, name) => proxy.subscribe(&world, &mut disk, kind, name),
                Step::Unsubscribe(kind, name) => proxy.unsubscribe(&world, &mut disk, kind, name),
                Step::Settle => proxy.settle(&world, &mut disk),
                Step::Reconnect => proxy.connect(&world, &mut disk),
                Step::StandBy => stand_by(&world, &mut disk, &mut proxy),
                Step::RestartProxy => {
                    proxy.restart();
                    stand_by(&world, &mut disk, &mut proxy);
                }
                Step::RestartRelay(missing) => {
                    disk.crash(missing);
                    stand_by(&world, &mut disk, &mut proxy);
                }
                Step::Compact => { disk.compact(); }
            }
            for (kind, name) in disk.kept().keys() {
                let version = disk.store.version(*kind, name).expect("it is kept");
                let bad = (0..30).filter(|value| value % 6 == 5);
                let bad = bad.map(|value| tag(&resource(*kind, name, value).version().to_string()));
                prop_assert!(!bad.collect::<Vec<_>>().contains(&version), "{kind:?} {name} was rejected");
            }
        }
        // Everything becomes good and known, a controller answers, and the dust settles.
        for kind in ResourceType::ALL {
            for name in NAMES {
                if world.resources(kind).contains_key(name) {
                    world.set(kind, name, 100);
                }
            }
        }
        world.publish();
        for name in NAMES {
            if world.resources(Secret).contains_key(name) {
                world.set(Secret, name, 100);
            }
        }
        world.publish();
        proxy.connect(&world, &mut disk);
        proxy.take_all(&world, &mut disk);
        proxy.settle(&world, &mut disk);
        proxy.take_all(&world, &mut disk);
        proxy.settle(&world, &mut disk);
        prop_assert!(disk.store.is_complete());
        prop_assert_eq!(disk.kept(), proxy.tags());

        // The same after the relay has read its journal anew; a running proxy is sent nothing.
        disk.crash(0);
        prop_assert_eq!(disk.kept(), proxy.tags());
        proxy.stand_by(&world, &mut disk);
        prop_assert_eq!(proxy.news(), 0);
        let had = proxy.has.clone();
        proxy.restart();
        proxy.stand_by(&world, &mut disk);
        proxy.take_all(&world, &mut disk);
        prop_assert_eq!(&proxy.has, &had);

        // And a controller that returns sends nothing that has not changed.
        proxy.connect(&world, &mut disk);
        proxy.settle(&world, &mut disk);
        prop_assert_eq!(proxy.news(), 0);
        prop_assert_eq!(&proxy.has, &had);
    }
}
