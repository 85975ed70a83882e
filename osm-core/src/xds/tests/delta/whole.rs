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
    script.stream.on_request(&request, &snapshot).unwrap();
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
