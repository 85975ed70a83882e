//! The measurements that are repeated: which meshes, which steps, and what is judged.
//!
//! Owns the plans of `make bench` and `make bench-full` and the ratios that must hold. Nothing is judged by absolute time:
//! machines differ, and this one is shared; within one run, the same work must cost the same.

use std::time::Duration;

use anyhow::Result;
use osm_core::envoy::bootstrap;

use crate::{
    api::Api,
    connection::all_pinged,
    injection::{Injector, Pace},
    phase::Phase,
    plan::{ControlPlane, Plan, Stage, Step},
    population::{Size, mesh_config},
    report::Verdict,
    sidecar::Variant,
    world::World,
};
use osm_e2e::progress::Progress;

/// A large mesh: 1,000 services, each may call five others, one is called by a hundred.
const LARGE: Size = Size {
    services: 1_000,
    proxies: 10_000,
    upstreams: 5,
    hub_callers: 99,
};

/// What is compared with other meshes: 100 services, all visible to all.
pub(crate) const SMALL: Size = Size {
    services: 100,
    proxies: 1_000,
    upstreams: 5,
    hub_callers: 49,
};

/// Few proxies, so that a million events are told to them in minutes.
const SOAKED: Size = Size {
    services: 100,
    proxies: 200,
    upstreams: 5,
    hub_callers: 49,
};

/// A stage with one controller of ours.
pub(crate) fn stage(name: &str, permissive: bool, variant: Variant, steps: Vec<Step>) -> Stage {
    Stage {
        name: name.to_owned(),
        permissive,
        variant,
        control_plane: ControlPlane::Osm,
        controllers: 1,
        steps,
    }
}

/// Under ten minutes on two cores.
pub(crate) fn short() -> Vec<Plan> {
    let small = vec![Step::ConnectAll, Step::Idle(5), Step::Endpoint(5), Step::Restart];
    let large = vec![
        Step::ConnectInterested,
        Step::Endpoint(5),
        Step::ConnectAll,
        Step::Idle(10),
        Step::Endpoint(5),
        Step::Target(3),
        Step::Split(3),
        // What idling costs is the pings of all, which are far apart.
        Step::Idle(all_pinged(bootstrap::PING)),
        Step::Unrelated(10, 1_000),
        Step::Slow(2),
        Step::Reject(1),
        Step::Churn(10, 100),
        Step::Restart,
    ];
    vec![
        Plan {
            size: SMALL,
            stages: vec![
                stage("small, permissive", true, Variant::Delta, small),
                stage(
                    "small, SMI, state of the world",
                    false,
                    Variant::State,
                    vec![Step::ConnectAll, Step::Endpoint(3), Step::Target(2)],
                ),
            ],
        },
        Plan {
            size: LARGE,
            stages: vec![stage("large, SMI", false, Variant::Delta, large)],
        },
    ]
}

/// Everything, to the limit. An hour and more.
pub(crate) fn full() -> Vec<Plan> {
    let mut plans = short();
    let thirds = Stage {
        controllers: 3,
        ..stage(
            "large, SMI, three controllers",
            false,
            Variant::Delta,
            vec![
                Step::ConnectAll,
                Step::Idle(10),
                Step::Endpoint(3),
                Step::Target(3),
            ],
        )
    };
    if let Some(large) = plans.last_mut() {
        large.stages.extend([
            stage(
                "large, SMI, switched",
                false,
                Variant::Delta,
                vec![Step::ConnectAll, Step::Switch],
            ),
            thirds,
            stage(
                "large, permissive",
                true,
                Variant::Delta,
                vec![Step::ConnectAll, Step::Idle(10), Step::Endpoint(3), Step::Restart],
            ),
        ]);
    }
    plans.push(Plan {
        size: SOAKED,
        stages: vec![stage(
            "soaked, SMI",
            false,
            Variant::Delta,
            vec![Step::ConnectAll, Step::Soak(1_000_000, 1_500), Step::Endpoint(3)],
        )],
    });
    plans
}

/// The injector: first at a steady rate, then as fast as it goes, twice, so that what it keeps of pods would show.
pub(crate) async fn injector(time: Duration, progress: &Progress) -> Result<Vec<Phase>> {
    let size = Size {
        services: 10,
        proxies: 10,
        ..SMALL
    };
    let api = Api::start(progress).await?;
    api.populate(&size).await?;
    api.create(&mesh_config(false)).await?;
    let mut world = World::new(api, size);
    // Makes the root.
    world.start(1).await?;
    world.stop();
    let mut injector = Injector::start(&world.api).await?;
    let mut phases = Vec::new();
    for (name, pace) in [
        ("warm-up", Pace::Rate(50)),
        ("200 a second", Pace::Rate(200)),
        ("as fast as it goes", Pace::Busy(16)),
        ("again", Pace::Busy(16)),
    ] {
        phases.push(injector.load(name, time, pace).await?);
    }
    Ok(phases)
}

/// The verdicts on what was measured. A phase that was not measured is not judged.
pub(crate) fn judge(phases: &[Phase]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut judge = |what: &str, value: Option<f64>, limit: f64| {
        if let Some(value) = value {
            verdicts.push(Verdict {
                what: what.to_owned(),
                value,
                limit,
            });
        }
    };
    let find = |name: &str| {
        phases
            .iter()
            .filter(|phase| phase.name == name)
            .collect::<Vec<_>>()
    };
    let one = |name: &str| find(name).into_iter().next();
    let before = |phase: &Phase| {
        let at = phases.iter().position(|other| std::ptr::eq(other, phase))?;
        phases.get(at.checked_sub(1)?)
    };
    let ratio = |over: Option<f64>, under: Option<f64>| Some(over? / under?.max(1e-6));

    let endpoints = find("large, SMI: one endpoint");
    let (few, many) = (endpoints.first().copied(), endpoints.get(1).copied());
    judge(
        "an endpoint, CPU beyond idling: 10,000 proxies connected against 1,000",
        ratio(many.map(Phase::work), few.map(Phase::work)),
        2.0,
    );
    judge(
        "an endpoint, last answer: 10,000 proxies connected against 1,000",
        ratio(
            many.map(|phase| phase.latency.last),
            few.map(|phase| phase.latency.last),
        ),
        2.0,
    );
    for phase in phases {
        if let Some(expected) = phase.expected {
            judge(
                &format!(
                    "{}: proxies that were sent something they should not, or not what they should",
                    phase.name
                ),
                Some(phase.proxies.abs_diff(expected) as f64),
                0.0,
            );
        }
        if let Some(most) = phase.streams.iter().max() {
            let sum: usize = phase.streams.iter().sum();
            judge(
                &format!(
                    "{}: streams of the busiest controller, against an equal share",
                    phase.name
                ),
                ratio(Some((*most * phase.streams.len()) as f64), Some(sum as f64)),
                1.1,
            );
        }
        if phase.connects > 0 && !phase.name.ends_with("restart after SIGKILL") {
            judge(
                &format!(
                    "{}: failures for each proxy, as of proxies that are sent too much at once",
                    phase.name
                ),
                Some(phase.failures as f64 / phase.connects as f64),
                0.1,
            );
        }
        if phase.name.contains(": switch ") {
            judge(
                &format!(
                    "{}: memory at its peak, against the end of the phase before",
                    phase.name
                ),
                before(phase).map(|before| phase.peak / before.resident),
                1.5,
            );
        }
        if phase.name.ends_with("one endpoint") {
            let others = phase.sent.all.resources - phase.sent.eds.resources;
            judge(
                &format!("{}: resources that are no endpoints", phase.name),
                Some(others as f64),
                0.0,
            );
        }
        if phase.name.ends_with("restart after SIGKILL") && !phase.name.contains("state") {
            let others = phase.sent.all.resources - phase.sent.sds.resources;
            judge(
                &format!("{}: resources sent again, but for secrets", phase.name),
                Some(others as f64),
                0.0,
            );
        }
        if phase.name.ends_with("unrelated writes") {
            judge(
                &format!("{}: resources built", phase.name),
                Some(phase.built),
                0.0,
            );
        }
    }
    let unrelated = one("large, SMI: unrelated writes");
    let target = one("large, SMI: one TrafficTarget");
    judge(
        "a TrafficTarget: resources built, against all that there are",
        ratio(
            target.map(|phase| phase.built),
            one("large, SMI: cold start").map(|phase| phase.built),
        ),
        0.02,
    );
    // The first time is just after 9,000 proxies have connected, which costs something yet.
    let settled = find("large, SMI: idle").into_iter().next_back();
    judge(
        "idle: CPU of the server with 10,000 proxies, against all of a core",
        settled.map(|phase| phase.load),
        0.01,
    );
    judge(
        "unrelated writes, 1,000 a second: CPU of the server beyond idling, against all of a core",
        unrelated.map(|phase| phase.work() / phase.seconds),
        0.05,
    );
    judge(
        "a tenth does not read: last answer of the others, against all reading",
        ratio(
            one("large, SMI: one endpoint, a tenth does not read").map(|phase| phase.latency.last),
            many.map(|phase| phase.latency.last),
        ),
        2.0,
    );
    judge(
        "a tenth rejects: responses for each one that should be sent",
        one("large, SMI: one endpoint, a tenth rejects")
            .map(|phase| phase.sent.all.responses as f64 / phase.proxies.max(1) as f64),
        1.1,
    );
    judge(
        "connecting: CPU for each of 10,000 proxies, against each of the first 1,000",
        ratio(
            one("large, SMI: connect, all").map(|phase| phase.cpu / phase.proxies as f64),
            one("large, SMI: connect, the first").map(|phase| phase.cpu / phase.proxies as f64),
        ),
        1.5,
    );
    judge(
        "a million events: memory of the server in the last quarter, against the second",
        one("soaked, SMI: soak").and_then(|phase| phase.growth),
        1.02,
    );
    // Bytes are the same on every machine.
    let grown = |all: &Phase, first: &Phase| (all.resident - first.resident) * 1e3 / all.proxies as f64;
    judge(
        "memory of the server for each connected proxy, kB",
        one("large, SMI: connect, all")
            .zip(one("large, SMI: connect, the first"))
            .map(|(all, first)| grown(all, first)),
        60.0,
    );
    judge(
        "the injector's memory after twice as many pods",
        ratio(
            one("injector: again").map(|phase| phase.resident),
            one("injector: as fast as it goes").map(|phase| phase.resident),
        ),
        1.15,
    );
    verdicts
}
