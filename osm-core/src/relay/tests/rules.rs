//! One rule at a time.

use ResourceType::{Cluster, Endpoint, Listener, Secret};

use super::*;

/// A proxy that was served everything, and the relay that watched.
fn served() -> (World, Disk, Proxy) {
    let mut world = World::new();
    world
        .set(Cluster, "a", 1)
        .set(Listener, "l", 1)
        .set(Endpoint, "a", 1)
        .set(Secret, "s", 1)
        .publish();
    let (mut disk, mut proxy) = (Disk::new(), Proxy::new());
    proxy.connect(&world, &mut disk);
    proxy.subscribe(&world, &mut disk, Endpoint, "a");
    proxy.subscribe(&world, &mut disk, Secret, "s");
    proxy.take_all(&world, &mut disk);
    proxy.settle(&world, &mut disk);
    (world, disk, proxy)
}

#[test]
fn what_is_accepted_is_kept_and_served_after_both_restart() {
    let (world, mut disk, mut proxy) = served();
    assert!(disk.store.is_complete());
    let had = proxy.has.clone();
    assert_eq!(had.len(), 4);
    disk.crash(0);
    proxy.restart();
    proxy.stand_by(&world, &mut disk);
    proxy.take_all(&world, &mut disk);
    assert_eq!(proxy.has, had);
}

#[test]
fn nothing_is_offered_before_the_first_configuration_is_whole() {
    let mut world = World::new();
    world.set(Cluster, "a", 1).set(Listener, "l", 1).publish();
    let (mut disk, mut proxy) = (Disk::new(), Proxy::new());
    proxy.connect(&world, &mut disk);
    proxy.subscribe(&world, &mut disk, Secret, "s");
    proxy.settle(&world, &mut disk);
    assert!(!disk.store.is_complete(), "nothing was accepted yet");
    world.pend(Secret, "t").publish();
    proxy.subscribe(&world, &mut disk, Secret, "t");
    proxy.take_all(&world, &mut disk);
    proxy.settle(&world, &mut disk);
    assert!(!disk.store.is_complete(), "a secret is still being made");
    world.set(Secret, "t", 1).publish();
    proxy.receive(&world);
    proxy.take_all(&world, &mut disk);
    proxy.settle(&world, &mut disk);
    assert!(disk.store.is_complete());
}

#[test]
fn what_is_rejected_leaves_what_was_accepted_last() {
    let (mut world, mut disk, mut proxy) = served();
    let before = disk.kept();
    world.set(Cluster, "a", 2).publish();
    proxy.receive(&world);
    assert!(proxy.take(&world, &mut disk, |_, _, _| true));
    assert_eq!(disk.kept(), before);
}

#[test]
fn a_running_proxy_is_left_alone() {
    let (mut world, mut disk, mut proxy) = served();
    // It has accepted something newer than what is kept, and something that is not kept at all.
    world.set(Cluster, "a", 2).set(Cluster, "b", 2).publish();
    proxy.receive(&world);
    let kept = disk.kept();
    proxy.take_all(&world, &mut disk);
    let has = proxy.has.clone();
    let (bytes, _) = served_journal();
    disk.journal = bytes;
    disk.crash(0);
    assert_eq!(disk.kept(), kept);
    proxy.stand_by(&world, &mut disk);
    assert_eq!(proxy.waits(), 0, "it is sent nothing");
    // What it asks for again, it is given; what nobody knows does not hold up anything.
    proxy.subscribe(&world, &mut disk, Secret, "s");
    proxy.subscribe(&world, &mut disk, Secret, "unheard-of");
    assert_eq!(proxy.waits(), 2);
    proxy.take_all(&world, &mut disk);
    assert_eq!(proxy.has, has);
}

fn served_journal() -> (Vec<u8>, Proxy) {
    let (_, disk, proxy) = served();
    (disk.journal, proxy)
}

#[test]
fn a_store_that_lost_something_asks_for_it_again() {
    let (world, mut disk, mut proxy) = served();
    let kept = disk.kept();
    disk = Disk::new();
    proxy.connect(&world, &mut disk);
    proxy.take_all(&world, &mut disk);
    proxy.settle(&world, &mut disk);
    assert_eq!(disk.kept(), kept);
    assert!(disk.store.is_complete());
    // And asks only once.
    proxy.connect(&world, &mut disk);
    assert_eq!(proxy.waits(), 0);
}

#[test]
fn what_was_removed_while_the_proxy_started_anew_is_not_kept() {
    let (mut world, mut disk, mut proxy) = served();
    world.remove(Listener, "l").set(Listener, "m", 1).publish();
    proxy.restart();
    proxy.connect(&world, &mut disk);
    proxy.take_all(&world, &mut disk);
    assert!(
        disk.store.version(Listener, "l").is_some(),
        "until it is known to be whole"
    );
    proxy.settle(&world, &mut disk);
    assert_eq!(disk.store.version(Listener, "l"), None);
    assert_eq!(disk.kept(), proxy.tags());
}

#[test]
fn what_the_proxy_gives_up_is_dropped_even_if_it_is_on_its_way() {
    let (mut world, mut disk, mut proxy) = served();
    world.set(Endpoint, "a", 2).publish();
    proxy.receive(&world);
    proxy.unsubscribe(&world, &mut disk, Endpoint, "a");
    proxy.take_all(&world, &mut disk);
    assert_eq!(disk.store.version(Endpoint, "a"), None);
}

#[test]
fn an_empty_configuration_is_answered_too() {
    let world = World::new();
    let (mut disk, mut proxy) = (Disk::new(), Proxy::new());
    disk.write(&[Change::Complete]);
    proxy.stand_by(&world, &mut disk);
    assert_eq!(proxy.waits(), 2, "one answer each for clusters and listeners");
}

#[test]
fn large_configurations_are_answered_in_parts() {
    let mut disk = Disk::new();
    for number in 0..50 {
        disk.write(&[Change::Keep {
            kind: Cluster,
            name: format!("cluster-{number}").into(),
            version: tag("1"),
            body: vec![0; 100_000].into(),
        }]);
    }
    let request = delta_request(Cluster, &[]);
    let answers = Standby::new().on_request(&disk.store, &request);
    assert_eq!(answers.len(), 5);
    let all: usize = answers.iter().map(|answer| answer.resources.len()).sum();
    assert_eq!(all, 50);
    assert_eq!(disk.at(answers[0].resources[0]), vec![0; 100_000]);
}

#[test]
fn more_than_the_limits_is_not_kept() {
    let limits = Limits {
        resources: 2,
        bytes: 1_000,
    };
    let keep = |name: &str, size: usize| Change::Keep {
        kind: Cluster,
        name: name.into(),
        version: tag("1"),
        body: vec![0; size].into(),
    };
    let (mut store, _) = Store::new(limits);
    assert!(
        store
            .record(&[keep("a", 10), keep("b", 10), keep("a", 20)])
            .is_ok()
    );
    assert!(store.clone().record(&[keep("c", 10)]).is_err());
    assert!(store.record(&[keep("a", 990)]).is_err());
}

#[test]
fn the_journal_does_not_grow_without_bound() {
    let (mut world, mut disk, mut proxy) = served();
    let mut compacted = 0;
    for value in 0..5_000 {
        world.set(Endpoint, "a", value).publish();
        proxy.receive(&world);
        proxy.take_all(&world, &mut disk);
        compacted += usize::from(disk.compact());
        assert!(disk.journal.len() < 300_000);
    }
    assert!(compacted > 0);
    assert_eq!(disk.kept(), proxy.tags());
    disk.crash(0);
    assert_eq!(disk.kept(), proxy.tags());
    assert!(disk.store.is_complete());
}

#[test]
fn what_is_not_a_journal_is_not_read() {
    assert!(Store::read(Limits::default(), b"").is_none());
    assert!(Store::read(Limits::default(), b"osm-relay-kept/2").is_none());
    let (_, header) = Store::new(Limits::default());
    let store = Store::read(Limits::default(), &[header, b"noise, and more noise"].concat());
    assert!(store.is_some_and(|store| store.is_empty() && store.end() == 16));
}
