//! The state-of-the-world variant, as scripts.

use std::sync::Arc;

use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};

use super::*;
use crate::xds::{Limits, Outcome, StateStream};

struct Script {
    world: World,
    stream: StateStream,
}

impl Script {
    fn new(build: impl FnOnce(&mut World)) -> Self {
        let mut world = World::new();
        build(&mut world);
        world.publish();
        Self {
            world,
            stream: StateStream::new(proxy(), Limits::default()),
        }
    }

    fn answered(&mut self, request: DiscoveryRequest) -> (Outcome, Vec<Response>) {
        let snapshot = self.world.published().clone();
        let outcome = self
            .stream
            .on_request(&request, &snapshot)
            .expect("the request is in bounds");
        (outcome, self.stream.next_responses(&snapshot))
    }

    fn subscribe(&mut self, kind: ResourceType, names: &[&str]) -> Vec<Response> {
        self.answered(state_request(kind, names)).1
    }

    /// A request with the newest nonce: an answer if there is something to answer, and the names from now on.
    fn ack(&mut self, response: &Response, names: &[&str]) -> Vec<Response> {
        let mut request = state_request(response.kind, names);
        request.version_info = response.version.expect("it has one").to_string();
        request.response_nonce = response.nonce.to_string();
        self.answered(request).1
    }

    fn nack(&mut self, response: &Response, names: &[&str]) -> (Outcome, Vec<Response>) {
        let mut request = state_request(response.kind, names);
        request.response_nonce = response.nonce.to_string();
        request.error_detail = rejection();
        self.answered(request)
    }

    fn change(&mut self, edit: impl FnOnce(&mut World)) -> Vec<Response> {
        edit(&mut self.world);
        let snapshot = self.world.publish();
        self.stream.next_responses(&snapshot)
    }
}

fn two_of_each(world: &mut World) {
    for kind in [Cluster, Endpoint, Listener, Route] {
        world.set(kind, "a", 1).set(kind, "b", 1);
    }
}

#[test]
fn clusters_and_listeners_are_whole_the_others_what_changed() {
    let mut script = Script::new(two_of_each);
    for (kind, names, expected) in [
        (Cluster, &[][..], "CDS +a +b"),
        (Endpoint, &["a", "b"], "EDS +a +b"),
        (Listener, &[], "LDS +a +b"),
        (Route, &["a", "b"], "RDS +a +b"),
    ] {
        let responses = script.subscribe(kind, names);
        assert_eq!(shorts(&responses), [expected]);
        assert!(
            script.ack(&responses[0], names).is_empty(),
            "what is unchanged is not sent again"
        );
    }
    let responses = script.change(|world| {
        world.set(Cluster, "b", 2).set(Endpoint, "a", 2);
    });
    assert_eq!(
        shorts(&responses),
        ["CDS +a +b", "EDS +a +b"],
        "b's endpoints because its cluster changed"
    );
    assert!(script.ack(&responses[0], &[]).is_empty());
    assert!(script.ack(&responses[1], &["a", "b"]).is_empty());
    let responses = script.change(|world| {
        world.set(Endpoint, "a", 3);
    });
    assert_eq!(shorts(&responses), ["EDS +a"]);
}

#[test]
fn equal_sets_have_equal_versions_everywhere() {
    let version = |script: &mut Script| script.subscribe(Cluster, &[])[0].version;
    let mut one = Script::new(two_of_each);
    let mut other = Script::new(|world| {
        world
            .set(Cluster, "b", 1)
            .set(Cluster, "gone", 1)
            .set(Cluster, "a", 1)
            .remove(Cluster, "gone");
    });
    let same = version(&mut one);
    assert_eq!(same, version(&mut other));
    let mut third = Script::new(|world| {
        world.set(Cluster, "a", 1).set(Cluster, "b", 2);
    });
    assert_ne!(same, version(&mut third));
}

#[test]
fn the_first_request_is_always_answered() {
    let mut script = Script::new(two_of_each);
    let mut request = state_request(Cluster, &[]);
    request.version_info = script.subscribe(Cluster, &[])[0]
        .version
        .expect("a version")
        .to_string();
    request.response_nonce = "77".to_owned();
    script.stream = StateStream::new(proxy(), Limits::default());
    assert_eq!(shorts(&script.answered(request).1), ["CDS +a +b"]);
    let mut script = Script::new(|_| {});
    assert_eq!(shorts(&script.subscribe(Listener, &[])), ["LDS"]);
}

#[test]
fn names_replace_each_other() {
    let mut script = Script::new(two_of_each);
    let first = script.subscribe(Endpoint, &["a", "a"]);
    assert_eq!(shorts(&first), ["EDS +a"]);
    let second = script.ack(&first[0], &["a", "b"]);
    assert_eq!(shorts(&second), ["EDS +b"]);
    assert!(script.ack(&second[0], &["b"]).is_empty());
    let third = script.change(|world| {
        world.set(Endpoint, "a", 2).set(Endpoint, "b", 2);
    });
    assert_eq!(shorts(&third), ["EDS +b"]);
    assert_eq!(shorts(&script.ack(&third[0], &["b", "a"])), ["EDS +a"]);
}

#[test]
fn what_does_not_exist_is_not_spoken_of_until_it_does() {
    let mut script = Script::new(|world| {
        world.pend(Secret, "s");
    });
    assert!(script.subscribe(Secret, &["s", "stranger"]).is_empty());
    let responses = script.change(|world| {
        world.set(Secret, "s", 1);
    });
    assert_eq!(shorts(&responses), ["SDS +s"]);
}

#[test]
fn stale_requests_are_ignored_whole() {
    let mut script = Script::new(two_of_each);
    let first = script.subscribe(Endpoint, &["a"]);
    assert!(script.ack(&first[0], &["a"]).is_empty());
    for nonce in ["", "0", "2", "x", "999"] {
        let mut request = state_request(Endpoint, &["a", "b"]);
        request.response_nonce = nonce.to_owned();
        assert_eq!(script.answered(request).0, Outcome::Stale(Endpoint), "{nonce}");
    }
    assert_eq!(
        shorts(&script.ack(&first[0], &["a", "b"])),
        ["EDS +b"],
        "an old answer's nonce subscribes"
    );
}

#[test]
fn a_rejected_set_is_not_offered_again_a_changed_one_is() {
    let mut script = Script::new(two_of_each);
    let responses = script.subscribe(Cluster, &[]);
    let (outcome, then) = script.nack(&responses[0], &[]);
    assert!(
        matches!(outcome, Outcome::Rejected(ref rejection) if rejection.resources.len() == 2),
        "{outcome:?}"
    );
    assert!(then.is_empty());
    assert!(script.change(|_| {}).is_empty());
    let responses = script.change(|world| {
        world.set(Cluster, "a", 2);
    });
    assert_eq!(shorts(&responses), ["CDS +a +b"]);
    assert!(script.ack(&responses[0], &[]).is_empty());
    assert!(script.stream.status()[0].rejected.is_empty());
}

#[test]
fn a_cluster_stays_in_the_set_until_nothing_refers_to_it() {
    let mut script = Script::new(two_of_each);
    let clusters = script.subscribe(Cluster, &[]);
    script.ack(&clusters[0], &[]);
    let listeners = script.subscribe(Listener, &[]);
    script.ack(&listeners[0], &[]);
    let responses = script.change(|world| {
        world
            .remove(Cluster, "a")
            .set(Cluster, "c", 1)
            .set(Listener, "a", 2);
    });
    assert_eq!(shorts(&responses), ["CDS +b +c +a", "LDS +a +b"]);
    assert!(script.ack(&responses[0], &[]).is_empty());
    let then = script.ack(&responses[1], &[]);
    assert_eq!(shorts(&then), ["CDS +b +c"]);
    assert!(script.ack(&then[0], &[]).is_empty());
}

#[test]
fn a_legacy_wildcard_ends_when_names_are_given() {
    let mut script = Script::new(two_of_each);
    let first = script.subscribe(Cluster, &[]);
    assert!(script.ack(&first[0], &[]).is_empty());
    let second = script.ack(&first[0], &["a"]);
    assert_eq!(shorts(&second), ["CDS +a"]);
    assert!(
        script.ack(&second[0], &[]).is_empty(),
        "and an empty list is then an empty list"
    );
    let responses = script.change(|world| {
        world.set(Cluster, "a", 2);
    });
    assert!(responses.is_empty(), "{:?}", shorts(&responses));
    let back = script.ack(&second[0], &["*"]);
    assert_eq!(shorts(&back), ["CDS +a +b"]);
    let old = Arc::downgrade(script.world.published());
    script.change(|_| {});
    script.ack(&back[0], &["*"]);
    assert_eq!(
        old.strong_count(),
        0,
        "a stream in sync holds the newest snapshot only"
    );
}
