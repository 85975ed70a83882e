//! What a proxy rejected.

use super::*;

#[test]
fn a_rejected_version_is_not_offered_again() {
    let mut script = Script::synced(one_of_each);
    let responses = script.change(|world| {
        world.set(Route, "r", 2);
    });
    let (outcome, then) = script.nack(&responses[0]);
    let Outcome::Rejected(rejection) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        rejection.resources,
        [(Arc::from("r"), Script::version(Route, "r", 2))]
    );
    assert_eq!(rejection.message, "no good", "a message cannot forge a log line");
    assert!(then.is_empty());
    for _ in 0..10 {
        assert!(script.change(|_| {}).is_empty());
    }
    assert_eq!(script.stream.status()[3].rejected.len(), 1);
    let responses = script.change(|world| {
        world.set(Route, "r", 3);
    });
    assert_eq!(script.ack_all(responses), ["RDS +r"]);
    assert!(script.stream.status()[3].rejected.is_empty());
}

#[test]
fn after_a_rejection_the_old_version_is_sent_again() {
    let mut script = Script::synced(one_of_each);
    let responses = script.change(|world| {
        world.set(Cluster, "a", 2);
    });
    script.nack(&responses[0]);
    script.ack(&responses[1]);
    let responses = script.change(|world| {
        world.set(Cluster, "a", 1);
    });
    assert_eq!(
        script.ack_all(responses),
        ["CDS +a", "EDS +a"],
        "what the proxy made of it is not known"
    );
}

#[test]
fn one_bad_route_does_not_hold_up_the_others() {
    let all = ["r0", "r1", "r2", "r3", "r4"];
    let mut script = Script::new(|world| {
        for name in all {
            world.set(Route, name, 1);
        }
    });
    let mut queue = script.subscribe(Route, &all);
    let (mut accepted, mut offers) = (Vec::new(), 0);
    while let Some(response) = queue.pop() {
        if response
            .resources
            .iter()
            .any(|resource| resource.name().as_ref() == "r3")
        {
            offers += 1;
            queue.extend(script.nack(&response).1);
        } else {
            accepted.extend(
                response
                    .resources
                    .iter()
                    .map(|resource| resource.name().to_string()),
            );
            queue.extend(script.ack(&response));
        }
    }
    accepted.sort();
    assert_eq!(accepted, ["r0", "r1", "r2", "r4"]);
    assert!(offers <= 4, "offered {offers} times");
    let status = &script.stream.status()[0];
    assert_eq!(
        status.rejected,
        [(Arc::from("r3"), Script::version(Route, "r3", 1))]
    );
}

#[test]
fn removals_wait_while_a_listener_or_route_is_rejected() {
    let mut script = Script::synced(one_of_each);
    let responses = script.change(|world| {
        world.remove(Cluster, "a").set(Route, "r", 2);
    });
    assert_eq!(shorts(&responses), ["RDS +r"]);
    let (_, then) = script.nack(&responses[0]);
    assert!(
        then.is_empty(),
        "the old route still refers to it: {:?}",
        shorts(&then)
    );
    let responses = script.change(|world| {
        world.set(Route, "r", 3);
    });
    assert_eq!(script.ack_all(responses), ["RDS +r", "CDS -a"]);
}

#[test]
fn clusters_that_a_rejection_does_not_name_were_accepted() {
    let mut script = Script::synced(one_of_each);
    let responses = script.change(|world| {
        world
            .set(Cluster, "bad", 1)
            .set(Cluster, "good", 1)
            .set(Cluster, "a", 2);
    });
    let mut request = delta_request(Cluster, &[]);
    request.response_nonce = responses[0].nonce.to_string();
    request.error_detail = rejection();
    request.error_detail.as_mut().expect("set").message =
        "Error adding/updating cluster(s) bad: no such thing".to_owned();
    let (outcome, then) = script.answered(request);
    let Outcome::Rejected(rejection) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        rejection.resources,
        [(Arc::from("bad"), Script::version(Cluster, "bad", 1))]
    );
    assert!(then.is_empty());
    let responses = script.change(|world| {
        world.set(Cluster, "bad", 2);
    });
    assert_eq!(shorts(&responses), ["CDS +bad"]);
}
