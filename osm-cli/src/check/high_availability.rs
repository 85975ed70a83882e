//! Whether the next thing that breaks will be felt: replicas, their spread, budgets, autoscalers, connections.

use std::collections::BTreeSet;

use osm_core::api::names;

use super::facts::{Asked, Component, Facts, Instance};
use super::finding::{Check, Finding, list};

pub(super) const GROUP: &str = "high availability";
/// The one check that also warns of what is wrong without high availability.
pub(super) const BUDGET: &str = "osm-ha-budget";
/// Fewer connections than this cannot be spread badly.
const FEW: u64 = 20;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    [
        replicas,
        hosts,
        zones,
        budgets,
        autoscalers,
        connections,
        failure_policy,
    ]
    .map(|check| check(facts))
    .into()
}

fn check(code: &'static str, what: &'static str) -> Check {
    Check {
        group: GROUP,
        code,
        what,
    }
}

/// The ready replicas of each component, or why they are not known.
fn ready(facts: &Facts) -> Asked<Vec<(&Component, Vec<&Instance>)>> {
    fn own(component: &Component) -> Asked<(&Component, Vec<&Instance>)> {
        let replicas = component.replicas.as_ref().map_err(Clone::clone)?;
        Ok((
            component,
            replicas.iter().filter(|replica| replica.ready).collect(),
        ))
    }
    facts.components.iter().map(own).collect()
}

fn replicas(facts: &Facts) -> Finding {
    let check = check(
        "osm-ha-replicas",
        "at least two replicas of each component are ready",
    );
    let components = match ready(facts) {
        Ok(components) => components,
        Err(error) => return check.unknown(error),
    };
    let few = components.iter().filter(|(_, ready)| ready.len() < 2);
    let few: Vec<String> = few
        .map(|(component, ready)| format!("{} has {}", component.name, ready.len()))
        .collect();
    if few.is_empty() {
        let seen = components
            .iter()
            .map(|(component, ready)| format!("{} {}", ready.len(), component.name));
        return check.ok_with(list(seen.collect()));
    }
    check.fail(
        format!(
            "{}: when that one goes, nobody serves new pods and changes until another has started",
            list(few)
        ),
        facts.upgrade("--ha"),
    )
}

/// Judges in how many different places the replicas of each component are.
fn spread(
    facts: &Facts,
    check: Check,
    places: &BTreeSet<&str>,
    fix: String,
    place: impl Fn(&str) -> Option<String>,
) -> Finding {
    let components = match ready(facts) {
        Ok(components) => components,
        Err(error) => return check.unknown(error),
    };
    let (mut failures, mut seen) = (Vec::new(), Vec::new());
    for (component, ready) in components {
        let nodes = ready.iter().filter_map(|replica| replica.node.as_deref());
        let used: BTreeSet<String> = nodes.filter_map(&place).collect();
        let name = component.name;
        match (ready.len(), used.len()) {
            (_, 0) => failures.push(format!("no replica of {name} is anywhere")),
            (0 | 1, _) => failures.push(format!("{name} has one replica only")),
            (count, 1) => failures.push(format!(
                "all {count} of {name} are in {}",
                list(used.into_iter().collect())
            )),
            (_, count) => seen.push(format!("{name} in {count}")),
        }
    }
    if failures.is_empty() {
        return check.ok_with(list(seen));
    }
    match places.len() {
        0 | 1 => check.warn(
            format!("{}: the cluster has no second place for it", list(failures)),
            fix,
        ),
        _ => check.fail(list(failures), fix),
    }
}

fn hosts(facts: &Facts) -> Finding {
    let check = check("osm-ha-hosts", "replicas are on different nodes");
    let nodes = match &facts.nodes {
        Ok(nodes) => nodes,
        Err(error) => return check.unknown(error),
    };
    let usable = nodes.iter().filter(|node| node.takes_pods && node.ready);
    let places = usable.map(|node| node.name.as_str()).collect::<BTreeSet<_>>();
    let fix = if places.len() < 2 {
        "add a node that takes pods".to_owned()
    } else {
        facts.upgrade("--set=OpenServiceMesh.hostSpread=required")
    };
    spread(facts, check, &places, fix, |node| Some(node.to_owned()))
}

fn zones(facts: &Facts) -> Finding {
    let check = check("osm-ha-zones", "replicas are in different zones");
    let nodes = match &facts.nodes {
        Ok(nodes) => nodes,
        Err(error) => return check.unknown(error),
    };
    let usable = nodes.iter().filter(|node| node.takes_pods && node.ready);
    let places: BTreeSet<&str> = usable.filter_map(|node| node.zone.as_deref()).collect();
    if places.len() < 2 {
        return check.ok_with("the cluster has one zone");
    }
    let zone = |name: &str| nodes.iter().find(|node| node.name == name)?.zone.clone();
    let fix = format!(
        "{} rollout restart deployment/osm-controller deployment/osm-injector: zones are preferred when pods are placed",
        facts.kubectl()
    );
    spread(facts, check, &places, fix, zone)
}

fn budgets(facts: &Facts) -> Finding {
    let check = check(
        BUDGET,
        "a disruption budget guards each component, and lets nodes be drained",
    );
    let (mut failures, mut warnings, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let mut fix = String::new();
    let mut suggest = |text: String| {
        if fix.is_empty() {
            fix = text;
        }
    };
    for component in &facts.components {
        let (name, key) = (component.name, component.key);
        match &component.budget {
            Err(error) => unknown.push(error.clone()),
            Ok(None) => {
                warnings.push(format!("{name} has none: a drain may evict all replicas at once"));
                suggest(facts.upgrade(&format!(
                    "--set=OpenServiceMesh.{key}.enablePodDisruptionBudget=true"
                )));
            }
            Ok(Some(budget)) if budget.expected <= budget.needed => {
                failures.push(format!(
                    "{} demands {} of {} pods: draining the node of {name} is refused for ever",
                    budget.name, budget.needed, budget.expected
                ));
                let scaled = matches!(component.autoscaler, Ok(Some(_)));
                let count = if scaled {
                    "autoScale.minReplicas"
                } else {
                    "replicaCount"
                };
                suggest(facts.upgrade(&format!("--set=OpenServiceMesh.{key}.{count}=2")));
            }
            Ok(Some(budget)) if budget.allowed < 1 => {
                warnings.push(format!(
                    "{} allows no eviction now: {} of {} pods are healthy",
                    budget.name, budget.healthy, budget.expected
                ));
                suggest(format!("{} get pods --output wide", facts.kubectl()));
            }
            Ok(Some(_)) => {}
        }
    }
    if failures.is_empty() && warnings.is_empty() && !unknown.is_empty() {
        return check.unknown(list(unknown));
    }
    check.of(failures, warnings, fix)
}

fn autoscalers(facts: &Facts) -> Finding {
    let check = check("osm-ha-autoscaler", "autoscalers can do their work");
    let (mut failures, mut warnings, mut seen, mut unknown) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for component in &facts.components {
        let name = component.name;
        let scaler = match &component.autoscaler {
            Err(error) => {
                unknown.push(error.clone());
                continue;
            }
            Ok(None) => {
                seen.push(format!("{name} has none, its replicas are fixed"));
                continue;
            }
            Ok(Some(scaler)) => scaler,
        };
        let its = &scaler.name;
        if let Some(why) = &scaler.idle {
            failures.push(format!("{its} does not scale: {why}"));
        }
        if component
            .rollout
            .as_ref()
            .is_ok_and(|rollout| !rollout.requests_cpu)
        {
            failures.push(format!(
                "{its} has no measure: the containers of {name} request no CPU"
            ));
        }
        if scaler.min < 2 {
            warnings.push(format!("{its} may scale to {}", scaler.min));
        }
        if scaler.current >= scaler.max && scaler.max > scaler.min {
            warnings.push(format!("{its} is at its maximum of {}", scaler.max));
        }
        if scaler.cpu.is_some_and(|cpu| cpu > 90) {
            warnings.push(format!(
                "{its} begins at {} % CPU, too late to help",
                scaler.cpu.unwrap_or_default()
            ));
        }
        seen.push(format!("{name} {} to {}", scaler.min, scaler.max));
    }
    if failures.is_empty() && warnings.is_empty() {
        if !unknown.is_empty() {
            return check.unknown(list(unknown));
        }
        return check.ok_with(list(seen));
    }
    let fix = format!(
        "{} describe hpa; bounds and target are OpenServiceMesh.osmController.autoScale and .injector.autoScale; \
         metrics-server must run",
        facts.kubectl()
    );
    check.of(failures, warnings, fix)
}

fn connections(facts: &Facts) -> Finding {
    let check = check("osm-ha-connections", "sidecars are spread over the controllers");
    let serves: Vec<(&str, u64)> = facts
        .answers()
        .filter_map(|(pod, answer)| Some((pod, answer.replica.serves.as_ref()?.connected)))
        .collect();
    if serves.is_empty() {
        return check.unknown("no controller answers");
    }
    let total: u64 = serves.iter().map(|(_, connected)| connected).sum();
    let count = serves.len() as u64;
    let text = list(
        serves
            .iter()
            .map(|(pod, connected)| format!("{pod} {connected}"))
            .collect(),
    );
    let uneven = |connected: u64| connected * count > total * 2 || connected * count * 4 < total;
    if count > 1 && total >= FEW && serves.iter().any(|(_, connected)| uneven(*connected)) {
        return check.warn(
            format!("{text}: a new replica gets the sidecars that connect from then on, connections are never moved"),
            facts.upgrade("--set=OpenServiceMesh.osmController.maxConnectionAge=1h"),
        );
    }
    check.ok_with(text)
}

fn failure_policy(facts: &Facts) -> Finding {
    let check = check(
        "osm-ha-failure-policy",
        "no pod starts without its sidecar while no injector answers",
    );
    let webhooks = match &facts.webhooks {
        Ok(webhooks) => webhooks,
        Err(error) => return check.unknown(error),
    };
    let mut pods = webhooks.iter().filter(|webhook| webhook.pods).peekable();
    if pods.peek().is_none() {
        return check.fail(
            format!("mesh [{}] has no webhook for pods", facts.mesh),
            facts.upgrade(""),
        );
    }
    let ignoring: Vec<String> = pods
        .filter(|webhook| !webhook.fails)
        .map(|webhook| webhook.name.clone())
        .collect();
    if ignoring.is_empty() {
        return check.ok_with("such pods are refused, and made again by what owns them");
    }
    check.warn(
        format!("{} lets them in without (failurePolicy Ignore)", list(ignoring)),
        facts.upgrade(&format!(
            "--set=OpenServiceMesh.injector.failurePolicy=Fail (two or more {} make it safe)",
            names::INJECTOR
        )),
    )
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

    fn controllers(facts: &mut Facts) -> &mut Vec<Instance> {
        facts.components[0].replicas.as_mut().unwrap()
    }

    #[track_caller]
    fn says(finding: Finding, verdict: Verdict, words: &str) {
        assert_eq!(finding.verdict, verdict, "{finding:?}");
        assert!(
            finding.why.clone().unwrap_or_default().contains(words),
            "{finding:?}"
        );
    }

    #[test]
    fn one_ready_replica_is_not_enough() {
        let finding = replicas(&with(|facts| {
            controllers(facts).truncate(2);
            controllers(facts)[1].ready = false;
        }));
        says(finding.clone(), Verdict::Failure, "osm-controller has 1");
        assert!(
            finding
                .fix
                .unwrap()
                .contains("osm mesh upgrade --mesh-name osm --osm-namespace osm-system --ha")
        );
    }

    #[test]
    fn replicas_of_one_node_fall_together() {
        let together = |nodes: usize| {
            with(|facts| {
                facts.nodes.as_mut().unwrap().truncate(nodes);
                controllers(facts)
                    .iter_mut()
                    .for_each(|replica| replica.node = Some("a".to_owned()));
            })
        };
        says(
            hosts(&together(3)),
            Verdict::Failure,
            "all 3 of osm-controller are in a",
        );
        says(hosts(&together(1)), Verdict::Warning, "no second place");
        says(
            zones(&together(3)),
            Verdict::Failure,
            "all 3 of osm-controller are in north",
        );
        assert_eq!(zones(&together(1)).verdict, Verdict::Ok, "a cluster of one zone");
        let unready = with(|facts| {
            // Two ready ones on one node, and one on another that is not ready.
            controllers(facts)
                .iter_mut()
                .for_each(|replica| replica.node = Some("a".to_owned()));
            (controllers(facts)[2].node, controllers(facts)[2].ready) = (Some("b".to_owned()), false);
        });
        says(
            hosts(&unready),
            Verdict::Failure,
            "all 2 of osm-controller are in a",
        );
    }

    #[test]
    fn a_budget_of_one_replica_blocks_every_drain() {
        let finding = budgets(&with(|facts| {
            let budget = facts.components[0].budget.as_mut().unwrap().as_mut().unwrap();
            (budget.expected, budget.healthy, budget.allowed) = (1, 1, 0);
        }));
        says(finding.clone(), Verdict::Failure, "demands 1 of 1 pods");
        assert!(
            finding
                .fix
                .unwrap()
                .contains("osmController.autoScale.minReplicas=2")
        );
        let finding = budgets(&with(|facts| {
            let budget = facts.components[1].budget.as_mut().unwrap().as_mut().unwrap();
            (budget.healthy, budget.allowed) = (1, 0);
        }));
        says(finding, Verdict::Warning, "allows no eviction now: 1 of 3");
        says(
            budgets(&with(|facts| facts.components[0].budget = Ok(None))),
            Verdict::Warning,
            "has none",
        );
    }

    #[test]
    fn an_autoscaler_that_cannot_work_is_shown() {
        let scaler = |change: fn(&mut super::super::facts::Autoscaler)| {
            autoscalers(&with(|facts| {
                change(facts.components[0].autoscaler.as_mut().unwrap().as_mut().unwrap())
            }))
        };
        says(
            scaler(|scaler| scaler.min = 1),
            Verdict::Warning,
            "may scale to 1",
        );
        says(
            scaler(|scaler| scaler.current = 10),
            Verdict::Warning,
            "at its maximum of 10",
        );
        says(
            scaler(|scaler| scaler.cpu = Some(95)),
            Verdict::Warning,
            "begins at 95 % CPU",
        );
        says(
            scaler(|scaler| scaler.idle = Some("no metrics".to_owned())),
            Verdict::Failure,
            "osm-controller-hpa does not scale: no metrics",
        );
        let unmeasured = with(|facts| facts.components[0].rollout.as_mut().unwrap().requests_cpu = false);
        says(autoscalers(&unmeasured), Verdict::Failure, "request no CPU");
        assert_eq!(
            autoscalers(&with(|facts| facts.components[0].autoscaler = Ok(None))).verdict,
            Verdict::Ok
        );
    }

    #[test]
    fn a_replica_that_serves_nobody_is_shown_when_there_are_many() {
        let spread = |counts: [u64; 3]| {
            connections(&with(|facts| {
                for (replica, count) in controllers(facts).iter_mut().zip(counts) {
                    replica
                        .answer
                        .as_mut()
                        .unwrap()
                        .replica
                        .serves
                        .as_mut()
                        .unwrap()
                        .connected = count;
                }
            }))
        };
        assert_eq!(spread([10, 12, 8]).verdict, Verdict::Ok);
        assert_eq!(spread([3, 0, 0]).verdict, Verdict::Ok, "few cannot be uneven");
        says(spread([30, 30, 0]), Verdict::Warning, "osm-controller-2 0");
        says(spread([50, 5, 10]), Verdict::Warning, "osm-controller-0 50");
    }

    #[test]
    fn letting_pods_in_without_a_sidecar_is_a_warning() {
        let finding = failure_policy(&with(|facts| facts.webhooks.as_mut().unwrap()[0].fails = false));
        says(finding, Verdict::Warning, "failurePolicy Ignore");
    }
}
