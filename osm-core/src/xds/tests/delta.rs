//! The incremental variant, as scripts.

mod rejection;
mod whole;

use std::sync::Arc;

use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};

use super::*;
use crate::{
    resource::Version,
    xds::{DeltaStream, Limits, Outcome},
};

/// A stream and the world it is in.
struct Script {
    world: World,
    stream: DeltaStream,
}

impl Script {
    fn new(build: impl FnOnce(&mut World)) -> Self {
        let mut world = World::new();
        build(&mut world);
        world.publish();
        Self {
            world,
            stream: DeltaStream::new(proxy(), Limits::default()),
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Vec<Response> {
        self.answered(request).1
    }

    fn answered(&mut self, request: DeltaDiscoveryRequest) -> (Outcome, Vec<Response>) {
        let snapshot = self.world.published().clone();
        let outcome = self
            .stream
            .on_request(&received(&request), &snapshot)
            .expect("the request is in bounds");
        (outcome, self.stream.next_responses(&snapshot))
    }

    fn subscribe(&mut self, kind: ResourceType, names: &[&str]) -> Vec<Response> {
        self.request(delta_request(kind, names))
    }

    fn unsubscribe(&mut self, kind: ResourceType, names: &[&str]) -> Vec<Response> {
        let mut request = delta_request(kind, &[]);
        request.resource_names_unsubscribe = super::names(names);
        self.request(request)
    }

    /// Subscribes as a proxy that was connected before and has `held`.
    fn resume(&mut self, kind: ResourceType, names: &[&str], held: &[(&str, Version)]) -> Vec<Response> {
        let mut request = delta_request(kind, names);
        request.initial_resource_versions = held
            .iter()
            .map(|(name, version)| ((*name).to_owned(), version.to_string()))
            .collect();
        self.request(request)
    }

    fn ack(&mut self, response: &Response) -> Vec<Response> {
        let mut request = delta_request(response.kind, &[]);
        request.response_nonce = response.nonce.to_string();
        let (outcome, responses) = self.answered(request);
        assert_eq!(outcome, Outcome::Accepted(response.kind));
        responses
    }

    fn nack(&mut self, response: &Response) -> (Outcome, Vec<Response>) {
        let mut request = delta_request(response.kind, &[]);
        request.response_nonce = response.nonce.to_string();
        request.error_detail = rejection();
        self.answered(request)
    }

    /// Accepts responses until none is left; returns all of them, in short.
    fn ack_all(&mut self, responses: Vec<Response>) -> Vec<String> {
        let mut queue: std::collections::VecDeque<_> = responses.into();
        let mut seen = Vec::new();
        while let Some(response) = queue.pop_front() {
            seen.push(short(&response));
            queue.extend(self.ack(&response));
        }
        seen
    }

    fn change(&mut self, edit: impl FnOnce(&mut World)) -> Vec<Response> {
        edit(&mut self.world);
        let snapshot = self.world.publish();
        self.stream.next_responses(&snapshot)
    }

    /// The usual proxy: everything subscribed, everything accepted.
    fn synced(build: impl FnOnce(&mut World)) -> Self {
        let mut script = Self::new(build);
        for (kind, wildcard) in [
            (Cluster, true),
            (Endpoint, false),
            (Listener, true),
            (Route, false),
            (Secret, false),
        ] {
            let members: Vec<_> = script.world.resources(kind).into_keys().collect();
            let members: Vec<_> = members.iter().map(String::as_str).collect();
            let responses = script.subscribe(kind, if wildcard { &[] } else { &members });
            script.ack_all(responses);
        }
        script
    }

    fn version(kind: ResourceType, name: &str, value: u32) -> Version {
        resource(kind, name, value).version()
    }
}

fn one_of_each(world: &mut World) {
    world
        .set(Cluster, "a", 1)
        .set(Endpoint, "a", 1)
        .set(Listener, "l", 1)
        .set(Route, "r", 1)
        .set(Secret, "s", 1);
}

#[test]
fn a_wildcard_gets_everything_and_then_only_what_changed() {
    let mut script = Script::new(|world| {
        world.set(Cluster, "a", 1).set(Cluster, "b", 1);
    });
    let responses = script.subscribe(Cluster, &[]);
    assert_eq!(script.ack_all(responses), ["CDS +a +b"]);
    assert!(
        script.change(|_| {}).is_empty(),
        "an equal snapshot sends nothing"
    );
    let responses = script.change(|world| {
        world.set(Cluster, "b", 2).set(Cluster, "a", 1);
    });
    assert_eq!(
        script.ack_all(responses),
        ["CDS +b"],
        "equal bytes are not sent again"
    );
}

#[test]
fn a_wildcard_is_legacy_or_explicit_and_only_for_clusters_and_listeners() {
    for kind in ResourceType::ALL {
        for names in [&[][..], &["*"]] {
            let mut script = Script::new(one_of_each);
            let responses = shorts(&script.subscribe(kind, names));
            match kind {
                Cluster => assert_eq!(responses, ["CDS +a"]),
                Listener => assert_eq!(responses, ["LDS +l"]),
                _ if names.is_empty() => assert!(responses.is_empty(), "{kind:?} sent {responses:?}"),
                _ => assert!(
                    responses[0].ends_with(" -*"),
                    "to them * is a name: {responses:?}"
                ),
            }
        }
    }
    let mut script = Script::new(one_of_each);
    assert_eq!(
        shorts(&script.subscribe(Listener, &["nope"])),
        ["LDS -nope"],
        "names are no wildcard"
    );
}

#[test]
fn a_first_wildcard_is_answered_even_if_there_is_nothing() {
    let mut script = Script::new(|_| {});
    let responses = script.subscribe(Cluster, &[]);
    assert_eq!(shorts(&responses), ["CDS"]);
    assert!(script.ack(&responses[0]).is_empty());
}

#[test]
fn a_proxy_the_mesh_does_not_know_is_sent_nothing_at_all() {
    let mut script = Script::new(one_of_each);
    script.change(|world| {
        world.own(None);
    });
    assert!(script.subscribe(Cluster, &[]).is_empty());
    let other = ServiceIdentity::new("shop", "thief");
    let responses = script.change(|world| {
        world.own(Some(other));
    });
    assert!(responses.is_empty(), "the uuid alone is no identity");
    let responses = script.change(|world| {
        world.own(Some(proxy().service));
    });
    assert_eq!(shorts(&responses), ["CDS +a"]);
}

#[test]
fn what_a_reconnected_proxy_has_is_not_sent_again() {
    let mut script = Script::new(|world| {
        one_of_each(world);
        world.set(Cluster, "b", 2);
    });
    let a = Script::version(Cluster, "a", 1);
    assert!(
        script
            .resume(Cluster, &[], &[("a", a), ("b", Script::version(Cluster, "b", 2))])
            .is_empty()
    );
    assert!(
        script
            .resume(Endpoint, &["a"], &[("a", Script::version(Endpoint, "a", 1))])
            .is_empty()
    );
    assert!(
        script
            .resume(Listener, &[], &[("l", Script::version(Listener, "l", 1))])
            .is_empty()
    );
    assert_eq!(
        shorts(&script.resume(Secret, &["s"], &[("s", Script::version(Secret, "s", 9))])),
        ["SDS +s"]
    );
}

#[test]
fn a_reconnected_proxy_is_sent_what_it_lacks_and_rid_of_what_is_gone() {
    let mut script = Script::new(|world| {
        world
            .set(Cluster, "new", 1)
            .set(Cluster, "changed", 2)
            .set(Cluster, "same", 1);
    });
    let held = [
        ("changed", Script::version(Cluster, "changed", 1)),
        ("same", Script::version(Cluster, "same", 1)),
        ("gone", Script::version(Cluster, "gone", 1)),
    ];
    let responses = script.resume(Cluster, &[], &held);
    assert_eq!(
        script.ack_all(responses),
        ["CDS +changed +new"],
        "what it may still refer to waits"
    );
    script.stream.settle();
    let responses = script.change(|_| {});
    assert_eq!(script.ack_all(responses), ["CDS -gone"]);
}

#[test]
fn a_foreign_version_is_no_version() {
    let mut script = Script::new(one_of_each);
    let mut request = delta_request(Cluster, &[]);
    request.initial_resource_versions = [("a".to_owned(), "7".to_owned())].into();
    assert_eq!(shorts(&script.request(request)), ["CDS +a"]);
}

#[test]
fn later_initial_versions_are_not_believed() {
    let mut script = Script::synced(one_of_each);
    let mut request = delta_request(Secret, &["t"]);
    request.initial_resource_versions =
        [("t".to_owned(), Script::version(Secret, "t", 1).to_string())].into();
    script.change(|world| {
        world.set(Secret, "t", 1);
    });
    assert_eq!(shorts(&script.request(request)), ["SDS +t"]);
}

#[test]
fn a_name_that_is_subscribed_to_is_always_answered() {
    let mut script = Script::synced(one_of_each);
    let responses = script.subscribe(Endpoint, &["a"]);
    assert_eq!(
        script.ack_all(responses),
        ["EDS +a"],
        "the proxy may have forgotten it"
    );
    let responses = script.subscribe(Endpoint, &["a", "a", "nope", "a"]);
    assert_eq!(script.ack_all(responses), ["EDS +a -nope"]);
    let responses = script.change(|world| {
        world.set(Endpoint, "nope", 1);
    });
    assert_eq!(script.ack_all(responses), ["EDS +nope"], "it stays subscribed to");
}

#[test]
fn a_certificate_that_is_being_issued_is_neither_sent_nor_removed() {
    let mut script = Script::new(|world| {
        world.pend(Secret, "service-cert");
    });
    assert!(script.subscribe(Secret, &["service-cert"]).is_empty());
    let responses = script.change(|world| {
        world.set(Secret, "service-cert", 1);
    });
    assert_eq!(script.ack_all(responses), ["SDS +service-cert"]);
    let responses = script.change(|world| {
        world.pend(Secret, "service-cert");
    });
    assert!(responses.is_empty(), "the old one stays until there is a new one");
    let responses = script.change(|world| {
        world.set(Secret, "service-cert", 1);
    });
    assert!(responses.is_empty(), "and it is the same");
}

#[test]
fn secrets_of_others_do_not_exist() {
    let mut script = Script::synced(one_of_each);
    assert_eq!(
        shorts(&script.subscribe(Secret, &["stranger"])),
        ["SDS -stranger"]
    );
}

#[test]
fn kinds_go_out_make_before_break() {
    let mut script = Script::synced(one_of_each);
    let responses = script.subscribe(Endpoint, &["b"]);
    script.ack_all(responses);
    let responses = script.change(|world| {
        world
            .remove(Cluster, "a")
            .remove(Endpoint, "a")
            .set(Cluster, "b", 1)
            .set(Endpoint, "b", 1);
        world.set(Listener, "l", 2).set(Route, "r", 2).set(Secret, "s", 2);
    });
    let sent = shorts(&responses);
    assert_eq!(sent, ["CDS +b", "EDS +b", "LDS +l", "RDS +r", "SDS +s"]);
    // The cluster goes only after listeners and routes are confirmed.
    let mut then = Vec::new();
    for response in &responses[..3] {
        then.extend(script.ack(response));
    }
    assert!(then.is_empty(), "removed too early: {:?}", shorts(&then));
    let then = script.ack(&responses[3]);
    assert_eq!(shorts(&then), ["CDS -a"]);
    assert!(
        script.ack(&responses[4]).is_empty(),
        "the endpoints wait for the cluster"
    );
    assert_eq!(shorts(&script.ack(&then[0])), ["EDS -a"]);
}

#[test]
fn a_kind_waits_for_the_ones_it_refers_to() {
    let mut script = Script::synced(one_of_each);
    let first = script.change(|world| {
        world.set(Cluster, "a", 2);
    });
    // The second change comes while the first is unanswered: the listener must not overtake cluster b.
    let second = script.change(|world| {
        world
            .set(Cluster, "b", 1)
            .set(Listener, "l", 2)
            .set(Secret, "s", 2);
    });
    assert_eq!(shorts(&second), ["SDS +s"], "only secrets wait for nobody");
    assert_eq!(shorts(&script.ack(&first[0])), ["CDS +b", "LDS +l"]);
}

#[test]
fn a_changed_cluster_is_followed_by_its_endpoints() {
    let mut script = Script::synced(|world| {
        one_of_each(world);
        world.set(Cluster, "b", 1).set(Endpoint, "b", 1);
    });
    let responses = script.change(|world| {
        world.set(Cluster, "a", 2);
    });
    assert_eq!(
        script.ack_all(responses),
        ["CDS +a", "EDS +a"],
        "of the changed cluster alone"
    );
}

#[test]
fn unsubscribing_inside_a_wildcard_is_answered() {
    let mut script = Script::new(one_of_each);
    let responses = script.subscribe(Cluster, &["*", "a", "nope"]);
    assert_eq!(script.ack_all(responses), ["CDS +a -nope"]);
    let responses = script.unsubscribe(Cluster, &["a", "nope"]);
    assert_eq!(script.ack_all(responses), ["CDS +a -nope"]);
    let responses = script.unsubscribe(Cluster, &["*"]);
    assert!(responses.is_empty());
    let responses = script.change(|world| {
        world.set(Cluster, "a", 2);
    });
    assert!(responses.is_empty(), "nothing is subscribed to any more");
    let responses = script.subscribe(Cluster, &["*"]);
    assert_eq!(script.ack_all(responses), ["CDS +a"]);
}

#[test]
fn unsubscribed_names_are_not_sent() {
    let mut script = Script::synced(one_of_each);
    assert!(script.unsubscribe(Endpoint, &["a", "never"]).is_empty());
    let responses = script.change(|world| {
        world.set(Endpoint, "a", 2);
    });
    assert!(responses.is_empty());
    let responses = script.change(|world| {
        world.remove(Endpoint, "a");
    });
    assert!(responses.is_empty());
}

#[test]
fn one_response_in_flight_and_intermediate_states_are_skipped() {
    let mut script = Script::synced(one_of_each);
    let first = script.change(|world| {
        world.set(Endpoint, "a", 2);
    });
    assert_eq!(shorts(&first), ["EDS +a"]);
    for value in 3..1_000 {
        let responses = script.change(|world| {
            world.set(Endpoint, "a", value);
        });
        assert!(
            responses.is_empty(),
            "a reader that never reads gets one response, not a thousand"
        );
    }
    let last = script.ack(&first[0]);
    assert_eq!(shorts(&last), ["EDS +a"]);
    assert_eq!(
        last[0].resources[0].version(),
        Script::version(Endpoint, "a", 999)
    );
    assert!(script.ack(&last[0]).is_empty());
}

#[test]
fn stale_future_and_foreign_nonces_are_ignored() {
    let mut script = Script::synced(one_of_each);
    let first = script.change(|world| {
        world.set(Endpoint, "a", 2);
    });
    script.change(|world| {
        world.set(Endpoint, "a", 3);
    });
    for nonce in ["0", "1", "99999", "-1", "x", "18446744073709551616", "🦀"] {
        for error_detail in [None, rejection()] {
            let mut request = delta_request(Endpoint, &[]);
            request.response_nonce = nonce.to_owned();
            request.error_detail = error_detail;
            let (outcome, responses) = script.answered(request);
            assert_eq!(outcome, Outcome::Stale(Endpoint), "{nonce}");
            assert!(responses.is_empty(), "{nonce}");
        }
    }
    let mut request = delta_request(Endpoint, &["b"]);
    request.response_nonce = "0".to_owned();
    script.answered(request);
    assert_eq!(
        shorts(&script.ack(&first[0])),
        ["EDS +a -b"],
        "its subscriptions count all the same"
    );
}

#[test]
fn a_resource_that_comes_back_before_its_removal_is_not_sent() {
    let mut script = Script::synced(one_of_each);
    let responses = script.change(|world| {
        world.remove(Cluster, "a").set(Listener, "l", 2);
    });
    let then = script.change(|world| {
        world.set(Cluster, "a", 1);
    });
    assert!(then.is_empty());
    assert!(script.ack(&responses[0]).is_empty());
}

#[test]
fn large_answers_are_divided() {
    let mut script = Script::new(|world| {
        for index in 0..40 {
            let name = format!("{index:02}{}", "x".repeat(100_000));
            world.set(Cluster, &name, 1);
        }
        world.set(Listener, "l", 1);
    });
    let first = script.subscribe(Cluster, &[]);
    assert_eq!(first.len(), 1);
    assert!(
        script.subscribe(Listener, &[]).is_empty(),
        "listeners wait for all clusters"
    );
    let mut queue = std::collections::VecDeque::from(first);
    let mut count = 0;
    let mut listener_at = None;
    while let Some(response) = queue.pop_front() {
        assert!(response.encoded_len() < 4 << 20);
        if response.kind == Listener {
            listener_at = Some(count);
        } else {
            count += response.resources.len();
        }
        queue.extend(script.ack(&response));
    }
    assert_eq!((count, listener_at), (40, Some(40)));
}

#[test]
fn the_usual_stream_shares_its_memory() {
    let mut script = Script::synced(|world| {
        for index in 0..100 {
            world
                .set(Cluster, &format!("c{index}"), 1)
                .set(Endpoint, &format!("c{index}"), 1);
        }
    });
    let before = script.stream.memory();
    let responses = script.change(|world| {
        world
            .set(Cluster, "c100", 1)
            .set(Endpoint, "c100", 1)
            .remove(Cluster, "c7")
            .remove(Endpoint, "c7");
    });
    script.ack_all(responses);
    let responses = script.subscribe(Endpoint, &["c100"]);
    script.ack_all(responses);
    let responses = script.unsubscribe(Endpoint, &["c7"]);
    script.ack_all(responses);
    assert_eq!(
        (before, script.stream.memory()),
        (0, 0),
        "names or exceptions that are not shared"
    );
    let old = Arc::downgrade(script.world.published());
    script.change(|_| {});
    assert_eq!(
        old.strong_count(),
        0,
        "a stream in sync holds the newest snapshot only"
    );
}

#[test]
fn a_cluster_that_changed_before_a_reconnect_is_followed_by_its_endpoints() {
    let mut script = Script::new(|world| {
        one_of_each(world);
        world.set(Cluster, "a", 2);
    });
    let responses = script.resume(Cluster, &[], &[("a", Script::version(Cluster, "a", 1))]);
    assert_eq!(shorts(&responses), ["CDS +a"]);
    let responses = script.resume(Endpoint, &["a"], &[("a", Script::version(Endpoint, "a", 1))]);
    assert_eq!(shorts(&responses), ["EDS +a"], "although the proxy has them");
}

/// Envoy keeps the answer to clusters to itself while one of them is warming, that is, has no endpoints yet.
#[test]
fn endpoints_do_not_wait_for_clusters_to_be_confirmed() {
    let mut script = Script::new(|world| {
        world.set(Cluster, "a", 1).set(Endpoint, "a", 1);
    });
    let clusters = script.subscribe(Cluster, &[]);
    assert_eq!(shorts(&clusters), ["CDS +a"]);
    let news = script.change(|world| {
        world.set(Cluster, "b", 1).set(Endpoint, "b", 1);
    });
    assert_eq!(shorts(&news), [""; 0]);
    assert_eq!(shorts(&script.subscribe(Endpoint, &["a"])), ["EDS +a"]);
    assert_eq!(shorts(&script.ack(&clusters[0])), ["CDS +b"]);
}
