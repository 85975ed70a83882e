//! Whatever a peer sends, a stream answers or ends; it never panics and stays within its limits.

use proptest::prelude::*;

use super::*;
use crate::xds::{DeltaRequest, DeltaStream, Limits, MESSAGE_BYTES, Outcome, StateStream, StreamError};

const LIMITS: Limits = Limits {
    names: 10,
    name_bytes: 16,
};

fn many(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("n{index}")).collect()
}

#[test]
fn types_that_are_not_spoken_are_ignored_and_no_type_is_refused() {
    let snapshot = World::new().publish();
    let mut delta = DeltaStream::new(proxy(), LIMITS);
    let mut state = StateStream::new(proxy(), LIMITS);
    for type_url in [
        "x".to_owned(),
        "type.googleapis.com/".to_owned(),
        "y".repeat(1 << 20),
    ] {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.clone(),
            ..Default::default()
        };
        assert_eq!(
            delta.on_request(&received(&request), &snapshot),
            Ok(Outcome::UnknownType)
        );
        let request = DiscoveryRequest {
            type_url,
            ..Default::default()
        };
        assert_eq!(state.on_request(&request, &snapshot), Ok(Outcome::UnknownType));
    }
    assert_eq!(
        delta.on_request(&DeltaRequest::default(), &snapshot),
        Err(StreamError::NoType)
    );
    assert_eq!(
        state.on_request(&DiscoveryRequest::default(), &snapshot),
        Err(StreamError::NoType)
    );
    assert!(delta.status().is_empty() && state.status().is_empty());
}

#[test]
fn lists_and_names_are_bounded() {
    let snapshot = World::new().publish();
    let base = delta_request(ResourceType::Endpoint, &[]);
    let long = vec!["x".repeat(17)];
    let requests = [
        DeltaDiscoveryRequest {
            resource_names_subscribe: many(11),
            ..base.clone()
        },
        DeltaDiscoveryRequest {
            resource_names_unsubscribe: many(11),
            ..base.clone()
        },
        DeltaDiscoveryRequest {
            initial_resource_versions: many(11).into_iter().map(|name| (name, String::new())).collect(),
            ..base.clone()
        },
        DeltaDiscoveryRequest {
            resource_names_subscribe: long.clone(),
            ..base.clone()
        },
        DeltaDiscoveryRequest {
            resource_names_unsubscribe: long.clone(),
            ..base.clone()
        },
        DeltaDiscoveryRequest {
            initial_resource_versions: [(long[0].clone(), String::new())].into(),
            ..base.clone()
        },
    ];
    for (index, request) in requests.iter().enumerate() {
        let error = DeltaStream::new(proxy(), LIMITS)
            .on_request(&received(request), &snapshot)
            .expect_err("too much");
        assert_eq!(
            matches!(error, StreamError::TooManyNames { .. }),
            index < 3,
            "{error}"
        );
    }
    let mut state = StateStream::new(proxy(), LIMITS);
    let request = DiscoveryRequest {
        resource_names: many(11),
        ..state_request(ResourceType::Route, &[])
    };
    assert!(matches!(
        state.on_request(&request, &snapshot),
        Err(StreamError::TooManyNames { .. })
    ));
}

#[test]
fn a_subscription_cannot_grow_request_by_request() {
    let snapshot = World::new().publish();
    let mut stream = DeltaStream::new(proxy(), LIMITS);
    let mut refused = None;
    for index in 0..20 {
        let name = format!("n{index}");
        refused = stream
            .on_request(
                &received(&delta_request(ResourceType::Route, &[&name])),
                &snapshot,
            )
            .err();
        if refused.is_some() {
            assert_eq!(index, 10);
            break;
        }
    }
    assert!(
        matches!(
            refused,
            Some(StreamError::TooManyNames {
                count: 11,
                limit: 10,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn rejection_messages_are_cut_and_printable() {
    let snapshot = World::new().set(ResourceType::Cluster, "a", 1).publish();
    let mut stream = DeltaStream::new(proxy(), LIMITS);
    stream
        .on_request(&received(&delta_request(ResourceType::Cluster, &[])), &snapshot)
        .expect("accepted");
    let sent = stream.next_responses(&snapshot);
    let mut request = delta_request(ResourceType::Cluster, &[]);
    request.response_nonce = sent[0].nonce.to_string();
    request.error_detail = rejection();
    request.error_detail.as_mut().expect("set").message = "é\u{1b}[2J\r\n".repeat(1 << 18);
    let Ok(Outcome::Rejected(rejection)) = stream.on_request(&received(&request), &snapshot) else {
        panic!("not rejected")
    };
    assert!(rejection.message.len() <= MESSAGE_BYTES + '…'.len_utf8());
    assert!(!rejection.message.chars().any(char::is_control));
}

#[derive(Clone, Debug)]
struct Noise {
    type_url: String,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    initial: Vec<(String, String)>,
    nonce: String,
    error: bool,
}

fn noise() -> impl Strategy<Value = Noise> {
    let url = prop_oneof![
        9 => (0..5_usize).prop_map(|index| ResourceType::ALL[index].type_url().to_owned()),
        1 => ".{0,40}",
    ];
    let name = prop_oneof!["[a-d*]", ".{0,6}"];
    let names = prop::collection::vec(name.clone(), 0..6);
    let version = prop_oneof![
        Just(resource(ResourceType::Cluster, "a", 1).version().to_string()),
        ".{0,24}"
    ];
    let nonce = prop_oneof![
        Just(String::new()),
        (0..40_u64).prop_map(|nonce| nonce.to_string()),
        ".{0,4}"
    ];
    let initial = prop::collection::vec((name, version), 0..4);
    (url, names.clone(), names, initial, nonce, any::<bool>()).prop_map(
        |(type_url, subscribe, unsubscribe, initial, nonce, error)| Noise {
            type_url,
            subscribe,
            unsubscribe,
            initial,
            nonce,
            error,
        },
    )
}

proptest! {
    #[test]
    fn arbitrary_requests_never_panic(script in prop::collection::vec((noise(), any::<u8>()), 1..40)) {
        let mut world = World::new();
        let mut delta = DeltaStream::new(proxy(), Limits::default());
        let mut state = StateStream::new(proxy(), Limits::default());
        world.publish();
        for (noise, edit) in script {
            let kind = ResourceType::ALL[usize::from(edit) % 5];
            let name = ["a", "b", "c", "d"][usize::from(edit / 5) % 4];
            match edit / 64 {
                0 => world.set(kind, name, u32::from(edit)),
                1 => world.remove(kind, name),
                2 => world.pend(kind, name),
                _ => &mut world,
            };
            let snapshot = world.publish();
            let error_detail = if noise.error { rejection() } else { None };
            let request = DeltaDiscoveryRequest {
                type_url: noise.type_url.clone(),
                resource_names_subscribe: noise.subscribe.clone(),
                resource_names_unsubscribe: noise.unsubscribe,
                initial_resource_versions: noise.initial.into_iter().collect(),
                response_nonce: noise.nonce.clone(),
                error_detail: error_detail.clone(),
                ..Default::default()
            };
            let _ = delta.on_request(&received(&request), &snapshot);
            let request = DiscoveryRequest {
                type_url: noise.type_url,
                resource_names: noise.subscribe,
                response_nonce: noise.nonce,
                error_detail,
                ..Default::default()
            };
            let _ = state.on_request(&request, &snapshot);
            for response in delta.next_responses(&snapshot).iter().chain(&state.next_responses(&snapshot)) {
                prop_assert!(response.resources.iter().all(|resource| resource.name().as_ref() != "stranger"));
            }
        }
        delta.settle();
        delta.next_responses(&world.publish());
    }
}
