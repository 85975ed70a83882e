//! Whether every pod that should have a sidecar has one, and every sidecar has what it should.

use osm_core::status::{Connection, Kind, Standing};

use super::facts::Facts;
use super::finding::{Check, Finding, list, span};
use super::trust::RENEWED_BY;

const GROUP: &str = "data plane";
/// A response that has been unanswered for so long is not just on its way.
const STALE: u64 = 30;

pub(super) fn judge(facts: &Facts, each: bool) -> Vec<Finding> {
    let mut findings = vec![sidecars(facts), connected(facts)];
    if each {
        findings.extend([accepted, in_step, certificates].map(|check| check(facts)));
    }
    findings
}

fn sidecars(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-dp-sidecars",
        what: "no pod lacks the sidecar it should have",
    };
    let Some(count) = facts.answers().find_map(|(_, answer)| answer.replica.uninjected) else {
        return check.unknown("no controller that leads has looked yet");
    };
    if count == 0 {
        return check.ok();
    }
    let named: Vec<String> = facts
        .uninjected
        .iter()
        .map(|pod| format!("{}/{}", pod.namespace, pod.pod))
        .collect();
    let named = if named.is_empty() {
        String::new()
    } else {
        format!(": {}", list(named))
    };
    let fix = match facts.uninjected.first() {
        Some(pod) => format!(
            "kubectl --namespace {} delete pod {} (or restart what made it), and so on; why is in the pod's events",
            pod.namespace, pod.pod
        ),
        None => "restart what made them; kubectl get events --all-namespaces --field-selector reason=SidecarMissing".to_owned(),
    };
    check.warn(
        format!("the mesh neither protects nor controls the traffic of {count} pods{named}"),
        fix,
    )
}

fn connected(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-dp-connected",
        what: "every sidecar is connected to a controller",
    };
    let serves: Vec<_> = facts
        .answers()
        .filter_map(|(_, answer)| answer.replica.serves.as_ref())
        .collect();
    if serves.is_empty() {
        return check.unknown("no controller answers");
    }
    let connected: u64 = serves.iter().map(|serves| serves.connected).sum();
    let known = serves.iter().map(|serves| serves.known).max().unwrap_or(0);
    let silent = facts
        .components
        .iter()
        .filter(|component| component.name == osm_core::api::names::CONTROLLER)
        .flat_map(|component| component.replicas.iter().flatten())
        .any(|replica| replica.answer.is_err());
    if connected >= known {
        return check.ok_with(format!("{known} sidecars"));
    }
    let missing = format!("{} of {known} are not", known - connected);
    if silent {
        return check.unknown(format!(
            "{missing}, or are connected to a controller that does not answer"
        ));
    }
    check.warn(
        format!("{missing}; they go on with what they have"),
        "osm proxy status names them; a pod that is starting takes some seconds",
    )
}

/// Judges what the proxies' streams say; when no controller tells, nobody can tell.
fn judged(
    facts: &Facts,
    check: Check,
    fix: &str,
    judge: impl Fn(&Connection, i64) -> (Vec<String>, Vec<String>),
) -> Finding {
    let (mut failures, mut warnings, mut asked) = (Vec::new(), Vec::new(), 0);
    for (pod, proxies) in &facts.proxies {
        match proxies {
            Err(error) => warnings.push(format!("{pod}: {error}")),
            Ok(proxies) => {
                for connection in &proxies.proxies {
                    asked += 1;
                    let (failed, warned) = judge(connection, proxies.now);
                    let whose = |text: String| format!("{}: {text}", name(connection));
                    failures.extend(failed.into_iter().map(whose));
                    warnings.extend(warned.into_iter().map(whose));
                }
            }
        }
    }
    if facts.proxies.iter().all(|(_, proxies)| proxies.is_err()) {
        return check.unknown("no controller lists its proxies");
    }
    if failures.is_empty() && warnings.is_empty() {
        return check.ok_with(format!("{asked} sidecars"));
    }
    check.of(failures, warnings, fix)
}

fn name(connection: &Connection) -> String {
    let Connection {
        namespace,
        service_account,
        uuid,
        ..
    } = connection;
    format!("{namespace}/{service_account} {uuid}")
}

fn accepted(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-dp-accepted",
        what: "no sidecar rejects its configuration",
    };
    let fix = "osm proxy status POD says why; what it rejects comes from an object that can be corrected \
               (kubectl get events --all-namespaces --field-selector reason=ConfigurationRejected)";
    judged(facts, check, fix, |connection, _| {
        let nacked = |(kind, standing): (&String, &Kind)| {
            let names = standing.rejected.join(", ");
            let reason = standing.reason.as_deref().unwrap_or("no reason given");
            (standing.state == Standing::Nacked).then(|| format!("{kind} {names}: {reason}"))
        };
        (
            connection.kinds.iter().flatten().filter_map(nacked).collect(),
            Vec::new(),
        )
    })
}

fn in_step(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-dp-in-step",
        what: "every sidecar has confirmed what it was sent",
    };
    let fix = "a sidecar that does not answer is stuck or starved: look at its CPU limit (spec.sidecar.resources of the \
               MeshConfig) and its log";
    judged(facts, check, fix, |connection, _| {
        let Some(kinds) = &connection.kinds else {
            return (Vec::new(), vec!["its stream did not say".to_owned()]);
        };
        let stale = kinds.iter().filter_map(|(kind, standing)| {
            let waiting = standing.waiting_seconds.filter(|waiting| *waiting >= STALE)?;
            Some(format!("{kind} has been waiting for {waiting} s"))
        });
        (Vec::new(), stale.collect())
    })
}

fn certificates(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-dp-certificates",
        what: "the sidecars' certificates are fresh",
    };
    let lifetime = match &facts.lifetime {
        Ok(lifetime) => lifetime.unwrap_or(osm_core::certificate::DEFAULT_SERVICE_LIFETIME),
        Err(error) => return check.unknown(error),
    };
    let fix = format!(
        "renewal fails: {} logs deployment/osm-controller (`issuing a service certificate failed`)",
        facts.kubectl()
    );
    judged(facts, check, &fix, |connection, now| {
        match connection.certificate_not_after {
            None => (Vec::new(), vec!["it has none yet".to_owned()]),
            Some(not_after) if not_after <= now => {
                (vec![format!("over for {}", span(now - not_after))], Vec::new())
            }
            Some(not_after) if ((not_after - now) as f64) < lifetime.as_secs_f64() * RENEWED_BY => {
                (Vec::new(), vec![format!("{} left", span(not_after - now))])
            }
            Some(_) => (Vec::new(), Vec::new()),
        }
    })
}

#[cfg(test)]
mod tests {
    use osm_core::status::Uninjected;

    use super::super::{Verdict, fixture};
    use super::*;

    fn with(change: impl FnOnce(&mut Connection)) -> Facts {
        let mut facts = fixture::healthy();
        change(&mut facts.proxies[0].1.as_mut().unwrap().proxies[0]);
        facts
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
    fn pods_without_a_sidecar_are_named_and_counted() {
        let mut facts = fixture::healthy();
        for instance in facts.components[0].replicas.as_mut().unwrap() {
            let replica = &mut instance.answer.as_mut().unwrap().replica;
            replica.uninjected = replica.uninjected.map(|_| 7);
        }
        facts.uninjected = vec![Uninjected {
            namespace: "shop".to_owned(),
            pod: "till-1".to_owned(),
            reason: String::new(),
        }];
        let finding = sidecars(&facts);
        says(finding.clone(), Verdict::Warning, "of 7 pods: shop/till-1");
        assert!(
            finding
                .fix
                .unwrap()
                .starts_with("kubectl --namespace shop delete pod till-1")
        );
    }

    #[test]
    fn sidecars_nobody_serves_are_counted() {
        let mut facts = fixture::healthy();
        let replicas = facts.components[0].replicas.as_mut().unwrap();
        replicas[0]
            .answer
            .as_mut()
            .unwrap()
            .replica
            .serves
            .as_mut()
            .unwrap()
            .connected -= 2;
        says(connected(&facts), Verdict::Warning, "2 of 30 are not; they go on");
        let replicas = facts.components[0].replicas.as_mut().unwrap();
        replicas[0].answer = Err("no answer".to_owned());
        says(
            connected(&facts),
            Verdict::Warning,
            "or are connected to a controller that does not answer",
        );
    }

    #[test]
    fn a_rejection_is_shown_with_its_reason() {
        let finding = accepted(&with(|connection| {
            let kind = connection.kinds.as_mut().unwrap().get_mut("LDS").unwrap();
            kind.state = Standing::Nacked;
            kind.rejected = vec!["outbound-listener".to_owned()];
            kind.reason = Some("no such cluster".to_owned());
        }));
        says(
            finding,
            Verdict::Failure,
            "LDS outbound-listener: no such cluster",
        );
    }

    #[test]
    fn a_sidecar_that_does_not_answer_is_shown_after_a_while() {
        let waiting = |seconds| {
            in_step(&with(|connection| {
                let kind = connection.kinds.as_mut().unwrap().get_mut("CDS").unwrap();
                (kind.state, kind.waiting_seconds) = (Standing::Stale, Some(seconds));
            }))
        };
        assert_eq!(waiting(5).verdict, Verdict::Ok);
        says(waiting(45), Verdict::Warning, "CDS has been waiting for 45 s");
        says(
            in_step(&with(|connection| connection.kinds = None)),
            Verdict::Warning,
            "did not say",
        );
    }

    #[test]
    fn certificates_of_sidecars_are_judged_by_the_replicas_clock() {
        let left = |seconds: Option<i64>| {
            let mut facts = fixture::healthy();
            let proxies = facts.proxies[0].1.as_mut().unwrap();
            proxies.proxies[0].certificate_not_after = seconds.map(|seconds| proxies.now + seconds);
            certificates(&facts)
        };
        assert_eq!(left(Some(50_000)).verdict, Verdict::Ok);
        says(left(Some(3_600)), Verdict::Warning, "1h left");
        says(left(Some(-60)), Verdict::Failure, "over for 1m");
        says(left(None), Verdict::Warning, "none yet");
    }

    #[test]
    fn a_controller_that_lists_nothing_is_shown() {
        let mut facts = fixture::healthy();
        facts.proxies[0].1 = Err("no answer within 5 s".to_owned());
        says(accepted(&facts), Verdict::Warning, "osm-controller-0: no answer");
        facts
            .proxies
            .iter_mut()
            .for_each(|(_, proxies)| *proxies = Err("no".to_owned()));
        says(
            accepted(&facts),
            Verdict::Warning,
            "no controller lists its proxies",
        );
    }
}
