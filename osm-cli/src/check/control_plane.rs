//! Whether the control plane is installed, rolled out, configured, and on nodes whose clocks agree.

use super::facts::{Facts, Node};
use super::finding::{Check, Finding, list, span};

const KUBERNETES: &str = "kubernetes";
pub(super) const GROUP: &str = "control plane";

/// The oldest minor version of Kubernetes 1 that knows everything in the chart.
const OLDEST_MINOR: u32 = 27;
/// A node's Lease is renewed every ten seconds: one that is older by this much has a clock that is behind.
const RENEWED: i64 = 60;
/// Clocks that differ by less are not worth a word.
pub(super) const SKEW_SEEN: i64 = 30;
/// Certificates are back-dated by this much, so clocks that differ by more make new ones invalid.
pub(super) const SKEW_HARMS: i64 = osm_core::certificate::BACKDATE.as_secs() as i64;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    vec![version(facts), node_clocks(facts), rollout(facts), config(facts)]
}

fn version(facts: &Facts) -> Finding {
    let check = Check {
        group: KUBERNETES,
        code: "osm-k8s-version",
        what: "Kubernetes is 1.27 or newer",
    };
    match facts.minor {
        Some(minor) if minor < OLDEST_MINOR => check.fail(
            format!("the cluster is Kubernetes 1.{minor}"),
            "upgrade the cluster",
        ),
        Some(minor) => check.ok_with(format!("1.{minor}")),
        None => check.unknown("the cluster does not say its version as a number"),
    }
}

fn node_clocks(facts: &Facts) -> Finding {
    let check = Check {
        group: KUBERNETES,
        code: "osm-k8s-clocks",
        what: "the clocks of the nodes agree",
    };
    let nodes = match &facts.nodes {
        Ok(nodes) => nodes,
        Err(error) => return check.unknown(error),
    };
    // This machine's clock may be the wrong one: the replicas' are asked, too.
    let mut ahead: Vec<i64> = facts.answers().map(|(_, answer)| answer.ahead()).collect();
    ahead.sort_unstable();
    let now = facts.now_millis / 1_000 + ahead.get(ahead.len() / 2).copied().unwrap_or(0);
    let skew = |node: &Node| {
        let age = now - node.renewed_millis? / 1_000;
        let skew = if age < 0 { -age } else { -(age - RENEWED).max(0) };
        Some((skew, node.name.clone()))
    };
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    // The Lease of a node that is not ready is old because nobody renews it.
    for (skew, node) in nodes.iter().filter(|node| node.ready).filter_map(skew) {
        let text = || {
            let direction = if skew > 0 { "ahead" } else { "behind" };
            format!("node {node} is {} {direction}", span(skew.abs()))
        };
        match skew.abs() {
            seen if seen >= SKEW_HARMS => failures.push(text()),
            seen if seen >= SKEW_SEEN => warnings.push(text()),
            _ => {}
        }
    }
    check.of(
        failures,
        warnings,
        "run a time service (chrony, systemd-timesyncd) on these nodes: certificates made on one are not yet valid on another",
    )
}

fn rollout(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-cp-rollout",
        what: "the control plane is rolled out",
    };
    let (mut failures, mut warnings, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for component in &facts.components {
        let name = component.name;
        match &component.rollout {
            Err(error) => warnings.push(format!("{name}: {error}")),
            Ok(rollout) if rollout.available == 0 => failures.push(format!("no {name} is available")),
            Ok(rollout) if rollout.available < rollout.desired || rollout.updated < rollout.desired => {
                let (updated, available, desired) = (rollout.updated, rollout.available, rollout.desired);
                warnings.push(format!(
                    "{name}: {available} of {desired} available, {updated} up to date"
                ));
            }
            Ok(rollout) => seen.push(format!("{} {name}", rollout.available)),
        }
    }
    if failures.is_empty() && warnings.is_empty() {
        return check.ok_with(list(seen));
    }
    let fix = format!(
        "{} describe pods --selector 'app in (osm-controller,osm-injector)'",
        facts.kubectl()
    );
    check.of(failures, warnings, fix)
}

fn config(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-cp-config",
        what: "the MeshConfig exists and can be read",
    };
    match &facts.lifetime {
        Err(error) => check.unknown(error),
        Ok(Some(_)) => check.ok(),
        Ok(None) => check.fail(
            "there is no MeshConfig osm-mesh-config; the defaults hold, and settings cannot be changed",
            format!(
                "{} rollout restart deployment/osm-controller (it is made at start from the ConfigMap preset-mesh-config)",
                facts.kubectl()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, fixture};
    use super::*;

    fn with(change: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = fixture::healthy();
        change(&mut facts);
        facts
    }

    #[test]
    fn a_node_whose_clock_is_off_is_named() {
        let off = |seconds: i64| {
            let facts = with(|facts| {
                let now = facts.now_millis;
                if let Ok(nodes) = &mut facts.nodes {
                    nodes[1].renewed_millis = Some(now - 5_000 + seconds * 1_000);
                }
            });
            node_clocks(&facts)
        };
        assert_eq!(off(0).verdict, Verdict::Ok);
        assert_eq!(off(-40).verdict, Verdict::Ok, "a Lease may be some seconds old");
        assert_eq!(off(60).verdict, Verdict::Warning);
        assert_eq!(off(-200).verdict, Verdict::Warning);
        let hours = off(7_200);
        assert_eq!(hours.verdict, Verdict::Failure);
        assert!(
            hours.why.as_deref().unwrap().starts_with("node b is 1h59m ahead"),
            "{hours:?}"
        );
        assert_eq!(off(-7_200).verdict, Verdict::Failure);
    }

    #[test]
    fn the_clock_of_this_machine_is_not_the_measure() {
        let facts = with(|facts| facts.now_millis += 7_200_000);
        let facts = Facts {
            components: facts
                .components
                .into_iter()
                .map(|mut component| {
                    for instance in component.replicas.as_mut().unwrap() {
                        let answer = instance.answer.as_mut().unwrap();
                        (answer.asked_millis, answer.answered_millis) = (
                            answer.asked_millis + 7_200_000,
                            answer.answered_millis + 7_200_000,
                        );
                    }
                    component
                })
                .collect(),
            ..facts
        };
        assert_eq!(node_clocks(&facts).verdict, Verdict::Ok);
    }

    #[test]
    fn a_rollout_that_is_under_way_is_a_warning_and_nothing_at_all_a_failure() {
        let available = |available| {
            let facts = with(|facts| facts.components[0].rollout.as_mut().unwrap().available = available);
            rollout(&facts)
        };
        assert_eq!(available(3).verdict, Verdict::Ok);
        assert_eq!(available(2).verdict, Verdict::Warning);
        let none = available(0);
        assert_eq!(none.verdict, Verdict::Failure);
        assert_eq!(none.why.as_deref(), Some("no osm-controller is available"));
    }

    #[test]
    fn a_missing_mesh_config_is_a_failure() {
        assert_eq!(
            config(&with(|facts| facts.lifetime = Ok(None))).verdict,
            Verdict::Failure
        );
        assert_eq!(
            config(&with(|facts| facts.lifetime = Err("no".into()))).verdict,
            Verdict::Warning
        );
    }

    #[test]
    fn old_clusters_are_refused() {
        assert_eq!(
            version(&with(|facts| facts.minor = Some(26))).verdict,
            Verdict::Failure
        );
        assert_eq!(
            version(&with(|facts| facts.minor = Some(27))).verdict,
            Verdict::Ok
        );
    }
}
