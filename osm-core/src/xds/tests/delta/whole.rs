//! Proxies that name all there is, or nearly all.

use super::*;

#[test]
fn a_name_that_goes_while_all_are_asked_for_is_answered() {
    let mut script = Script::new(|world| {
        world
            .set(Endpoint, "a", 1)
            .set(Endpoint, "b", 1)
            .set(Endpoint, "c", 1);
    });
    let request = delta_request(Endpoint, &["a", "b", "c"]);
    let snapshot = script.world.published().clone();
    script.stream.on_request(&received(&request), &snapshot).unwrap();
    let newer = script.world.remove(Endpoint, "b").set(Endpoint, "c", 2).publish();
    let responses = script.stream.next_responses(&newer);
    assert_eq!(shorts(&responses), ["EDS +a +c -b"]);
}

#[test]
fn a_subscription_to_nearly_all_is_to_those_and_no_others() {
    let mut script = Script::new(|world| {
        for name in ["a", "b", "c", "d"] {
            world.set(Endpoint, name, 1);
        }
    });
    let first = script.subscribe(Endpoint, &["d", "b", "a"]);
    assert_eq!(shorts(&first), ["EDS +a +b +d"]);
    assert!(script.ack(&first[0]).is_empty());
    let newer = script.world.set(Endpoint, "c", 2).publish();
    assert!(script.stream.next_responses(&newer).is_empty(), "not subscribed");
    let second = script.subscribe(Endpoint, &["c"]);
    assert_eq!(shorts(&second), ["EDS +c"]);
    assert!(script.ack(&second[0]).is_empty());
    script.unsubscribe(Endpoint, &["a"]);
    let newer = script.world.set(Endpoint, "a", 2).set(Endpoint, "c", 3).publish();
    let third = script.stream.next_responses(&newer);
    assert_eq!(shorts(&third), ["EDS +c"]);
}

#[test]
fn who_asks_for_the_rest_is_also_told_what_has_changed() {
    let mut script = Script::new(|world| {
        for name in ["a", "b", "c", "d"] {
            world.set(Endpoint, name, 1);
        }
    });
    let first = script.subscribe(Endpoint, &["a", "d"]);
    assert_eq!(shorts(&first), ["EDS +a +d"]);
    assert!(script.ack(&first[0]).is_empty());
    let newer = script.world.set(Endpoint, "a", 2).publish();
    let request = delta_request(Endpoint, &["c", "b"]);
    script.stream.on_request(&received(&request), &newer).unwrap();
    let second = script.stream.next_responses(&newer);
    assert_eq!(shorts(&second), ["EDS +a +b +c"], "it has d");
    assert!(script.ack(&second[0]).is_empty());
    assert_eq!(script.stream.memory(), 0, "its subscription is everyone's");
}

#[test]
fn who_asks_for_the_rest_is_also_told_what_has_come() {
    let mut script = Script::new(|_| {});
    let first = script.subscribe(Endpoint, &["a"]);
    assert_eq!(shorts(&first), ["EDS -a"]);
    assert!(script.ack(&first[0]).is_empty());
    let newer = script.world.set(Endpoint, "a", 1).set(Endpoint, "b", 1).publish();
    let request = delta_request(Endpoint, &["b"]);
    script.stream.on_request(&received(&request), &newer).unwrap();
    assert_eq!(shorts(&script.stream.next_responses(&newer)), ["EDS +a +b"]);
}

#[test]
fn who_drops_the_rest_keeps_what_is_left() {
    let mut script = Script::new(|world| {
        for name in ["a", "b", "c", "d"] {
            world.set(Endpoint, name, 1);
        }
    });
    let first = script.subscribe(Endpoint, &["a", "b", "c", "d"]);
    assert!(script.ack(&first[0]).is_empty());
    let newer = script
        .world
        .remove(Endpoint, "b")
        .remove(Endpoint, "c")
        .remove(Endpoint, "d")
        .publish();
    let request = DeltaDiscoveryRequest {
        resource_names_unsubscribe: ["d", "b", "c"].map(str::to_owned).into(),
        ..delta_request(Endpoint, &[])
    };
    script.stream.on_request(&received(&request), &newer).unwrap();
    assert!(
        script.stream.next_responses(&newer).is_empty(),
        "nobody wants to know"
    );
    assert_eq!(script.stream.memory(), 0);
    let newest = script.world.set(Endpoint, "a", 2).set(Endpoint, "b", 2).publish();
    assert_eq!(shorts(&script.stream.next_responses(&newest)), ["EDS +a"]);
}

#[test]
fn what_is_large_waits_and_so_does_what_must_come_after_it() {
    let mut script = Script::synced(|world| {
        world
            .set(Cluster, "a", 1)
            .set(Endpoint, "a", 1)
            .set(Listener, "l", 1)
            .set(Secret, "s", 1);
    });
    let snapshot = script.world.published().clone();
    assert_eq!(script.stream.weight(&snapshot), 0);
    let newer = script.world.set(Endpoint, "a", 2).set(Secret, "s", 2).publish();
    assert_eq!(script.stream.weight(&newer), 0, "no name came or went");
    let newest = script
        .world
        .set(Cluster, "b", 1)
        .set(Cluster, "c", 1)
        .set(Listener, "m", 1)
        .publish();
    assert_eq!(script.stream.weight(&newest), (1 + 3) + (1 + 2));
    let one = |kind, name| {
        script.world.resources(kind)[name]
            .clone()
            .unwrap()
            .encoded()
            .len()
    };
    let limit = 1 + [(Endpoint, "a"), (Secret, "s"), (Listener, "m"), (Cluster, "b")]
        .map(|(kind, name)| one(kind, name))
        .into_iter()
        .max()
        .unwrap();
    let due = script.stream.due(&newest, limit);
    assert!(due.withheld, "two clusters are");
    assert_eq!(shorts(&due.responses), ["EDS +a", "SDS +s"]);
    let due = script.stream.due(&newest, limit);
    assert!(due.withheld && due.responses.is_empty());
    let due = script.stream.due(&newest, usize::MAX);
    assert!(!due.withheld);
    assert_eq!(shorts(&due.responses), ["CDS +b +c", "LDS +m"]);
}
