//! Ours beside the best peer: the same mesh in one API server, the same fake Envoys, one after the other.
//!
//! Owns the plan of `make bench-peer` and what is compared. Every figure of ours may be at most the peer's.

use osm_core::envoy::bootstrap;

use crate::{
    bench::{SMALL, stage},
    connection::all_pinged,
    istiod,
    phase::Phase,
    plan::{ControlPlane, Plan, Stage, Step},
    report::Verdict,
    sidecar::Variant,
};

const OURS: &str = "osm";
const PEER: &str = "istiod";

/// 1,000 proxies, 100 services, all visible to all: connecting at once, endpoints, a restart.
pub(crate) fn plan() -> Plan {
    // Long enough for each proxy of either to ping once.
    let idle = Step::Idle(all_pinged(bootstrap::PING.max(istiod::PING)));
    let steps = vec![Step::ConnectAll, idle, Step::Endpoint(5), Step::Restart];
    Plan {
        size: SMALL,
        stages: vec![
            stage(OURS, true, Variant::Delta, steps.clone()),
            Stage {
                control_plane: ControlPlane::Istiod,
                ..stage(PEER, true, Variant::Delta, steps)
            },
        ],
    }
}

/// What is read of a phase.
type Figure = (&'static str, fn(&Phase) -> f64);

/// Ours against the peer's, figure by figure. A phase that one of them lacks is not judged.
pub(crate) fn judge(phases: &[Phase]) -> Vec<Verdict> {
    let find = |mesh: &str, phase: &str| {
        let name = format!("{mesh}: {phase}");
        phases.iter().find(|phase| phase.name == name)
    };
    let last: Figure = ("last answer", |phase| phase.latency.last);
    let cpu: Figure = ("CPU beyond idling", Phase::work);
    let peak: Figure = ("memory at its peak", |phase| phase.peak);
    let all_cpu: Figure = ("CPU", |phase| phase.cpu);
    let resident: Figure = ("memory", |phase| phase.resident);
    let compared: [(&str, &[Figure]); 4] = [
        ("connect, all", &[last, cpu, peak]),
        ("idle", &[all_cpu, resident]),
        ("one endpoint", &[last, cpu]),
        ("restart after SIGKILL", &[last, cpu, peak]),
    ];
    let mut verdicts = Vec::new();
    for (name, figures) in compared {
        let (Some(ours), Some(peer)) = (find(OURS, name), find(PEER, name)) else {
            continue;
        };
        verdicts.extend(figures.iter().map(|(what, read)| Verdict {
            what: format!("{name}: {what}, against {PEER}"),
            value: read(ours) / read(peer).max(1e-6),
            limit: 1.0,
        }));
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::Latency;

    #[test]
    fn ours_may_be_at_most_the_peers() {
        let phase = |name: &str, last, peak| Phase {
            name: name.into(),
            cpu: 1.0,
            peak,
            latency: Latency {
                last,
                ..Latency::default()
            },
            ..Phase::default()
        };
        let phases = [
            phase("osm: connect, all", 2.0, 90.0),
            phase("osm: idle", 0.0, 0.0),
            phase("istiod: connect, all", 8.0, 60.0),
        ];
        let held: Vec<bool> = judge(&phases).iter().map(Verdict::holds).collect();
        assert_eq!(held, [true, true, false]);
    }
}
