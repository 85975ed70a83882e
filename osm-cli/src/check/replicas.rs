//! What the replicas say of themselves: whether they answer, are ready, of one version, and fresh.

use std::collections::BTreeSet;

use super::control_plane::{GROUP, SKEW_HARMS, SKEW_SEEN};
use super::facts::{Answer, Facts};
use super::finding::{Check, Finding, span, span_of};

/// A bookmark comes about every minute; a watch that is silent for longer cannot reach the API server.
const SILENCE: u64 = 180;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![answers(facts)];
    findings.extend([ready, version, caches, clocks, leaders].map(|check| check(facts)));
    findings
}

fn check(code: &'static str, what: &'static str) -> Check {
    Check {
        group: GROUP,
        code,
        what,
    }
}

/// Judges what the replicas that answered say; when none did, nobody can tell.
pub(super) fn judged(
    facts: &Facts,
    check: Check,
    judge: impl FnOnce(&[(&str, &Answer)]) -> Finding,
) -> Finding {
    let answers: Vec<_> = facts.answers().collect();
    if answers.is_empty() {
        return check.unknown("no replica answers");
    }
    judge(&answers)
}

fn answers(facts: &Facts) -> Finding {
    let check = check("osm-cp-answers", "every replica answers");
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    for component in &facts.components {
        match &component.replicas {
            Err(error) => warnings.push(format!(
                "the pods of {} cannot be listed: {error}",
                component.name
            )),
            Ok(replicas) if replicas.is_empty() => failures.push(format!("{} has no pod", component.name)),
            Ok(replicas) => {
                for replica in replicas {
                    if let Err(error) = &replica.answer {
                        // One that is not ready yet, or about to go, is not relied on.
                        let found = if replica.ready {
                            &mut failures
                        } else {
                            &mut warnings
                        };
                        found.push(format!("{}: {error}", replica.pod));
                    }
                }
            }
        }
    }
    if failures.is_empty() && warnings.is_empty() {
        return check.ok_with(format!("{} replicas", facts.answers().count()));
    }
    let fix = format!(
        "{} get pods --output wide; what hangs is restarted by {} delete pod NAME",
        facts.kubectl(),
        facts.kubectl()
    );
    check.of(failures, warnings, fix)
}

fn ready(facts: &Facts) -> Finding {
    let check = check("osm-cp-ready", "every replica is ready");
    judged(facts, check, |answers| {
        let mut found = Vec::new();
        for (pod, answer) in answers {
            found.extend(
                answer
                    .replica
                    .not_ready
                    .iter()
                    .map(|(name, why)| format!("{pod}: {name}: {why}")),
            );
            let stuck = answer.replica.stuck.iter();
            found
                .extend(stuck.map(|(name, seconds)| format!("{pod}: {name} has not turned for {seconds} s")));
        }
        let fix = format!(
            "{} logs POD: what keeps it from being ready is repaired at its source",
            facts.kubectl()
        );
        check.of(found, Vec::new(), fix)
    })
}

fn version(facts: &Facts) -> Finding {
    let check = check("osm-cp-version", "one version everywhere");
    judged(facts, check, |answers| {
        let versions: BTreeSet<&str> = answers
            .iter()
            .map(|(_, answer)| answer.replica.version.as_str())
            .collect();
        let all = versions.iter().copied().collect::<Vec<_>>().join(", ");
        if versions.len() > 1 {
            return check.warn(
                format!("replicas run {all}"),
                format!(
                    "wait for the rollout: {} rollout status deployment/osm-controller",
                    facts.kubectl()
                ),
            );
        }
        if !versions.contains(facts.version.as_str()) {
            return check.warn(
                format!("this program is {}, the replicas are {all}", facts.version),
                format!("use the program of {all}, or {}", facts.upgrade("")),
            );
        }
        check.ok_with(all)
    })
}

fn caches(facts: &Facts) -> Finding {
    let check = check("osm-cp-caches", "the replicas' caches are fresh");
    judged(facts, check, |answers| {
        let (mut warnings, mut oldest) = (Vec::new(), 0);
        for (pod, answer) in answers {
            if answer.replica.watches.is_empty() {
                warnings.push(format!("{pod} watches nothing"));
            }
            for (kind, silence) in &answer.replica.watches {
                match silence {
                    // It says why itself (osm-cp-ready), unless it can do without the kind.
                    None if answer.replica.not_ready.is_empty() => {
                        warnings.push(format!("{pod} has never been told of {kind}: is the CRD there?"));
                    }
                    Some(silence) if *silence > SILENCE => {
                        warnings.push(format!(
                            "{pod} has heard nothing of {kind} for {}",
                            span_of(*silence)
                        ));
                    }
                    None => {}
                    Some(silence) => oldest = oldest.max(*silence),
                }
            }
        }
        if warnings.is_empty() {
            return check.ok_with(format!("{} old at most", span_of(oldest)));
        }
        let fix = format!(
            "the API server cannot be reached from there: {} logs POD; replicas go on with what they know, and changes wait",
            facts.kubectl()
        );
        check.of(Vec::new(), warnings, fix)
    })
}

fn clocks(facts: &Facts) -> Finding {
    let check = check("osm-cp-clocks", "the clocks of the replicas agree");
    judged(facts, check, |answers| {
        let clocks = answers.iter().map(|(pod, answer)| (answer.ahead(), *pod));
        let (Some((low, behind)), Some((high, ahead))) = (clocks.clone().min(), clocks.max()) else {
            return check.unknown("no replica answers");
        };
        let skew = high - low;
        let why = format!("the clock of {ahead} is {} ahead of that of {behind}", span(skew));
        let fix = "run a time service (chrony, systemd-timesyncd) on the nodes: certificates are back-dated by 65 minutes, \
                   and clocks that differ by more refuse new ones";
        if skew >= SKEW_HARMS {
            check.fail(why, fix)
        } else if skew >= SKEW_SEEN {
            check.warn(why, fix)
        } else {
            check.ok()
        }
    })
}

fn leaders(facts: &Facts) -> Finding {
    let check = check("osm-cp-leaders", "one replica of each component holds its Lease");
    judged(facts, check, |_| {
        let mut warnings = Vec::new();
        for component in &facts.components {
            let replicas = component.replicas.iter().flatten();
            let leads = replicas.clone().filter(|replica| {
                let answer = replica.answer.as_ref();
                answer.is_ok_and(|answer| answer.replica.leader)
            });
            let silent = replicas.filter(|replica| replica.answer.is_err()).count();
            match leads.count() {
                1 => {}
                // It may be one that did not answer.
                0 if silent > 0 => {}
                0 => warnings.push(format!(
                    "no {} leads: renewal, collection and reports wait",
                    component.name
                )),
                count => warnings.push(format!("{count} of {} lead", component.name)),
            }
        }
        let fix = format!(
            "ask again in 20 seconds, a Lease changes hands when a replica goes; then {} get leases --output yaml",
            facts.kubectl()
        );
        check.of(Vec::new(), warnings, fix)
    })
}

#[cfg(test)]
mod tests {
    use osm_core::status::Replica;

    use super::super::facts::Instance;
    use super::super::{Verdict, fixture};
    use super::*;

    /// The healthy mesh, with one injector changed.
    fn with(change: impl FnOnce(&mut Instance)) -> Facts {
        let mut facts = fixture::healthy();
        change(&mut facts.components[1].replicas.as_mut().unwrap()[0]);
        facts
    }

    fn saying(change: impl FnOnce(&mut Replica)) -> Facts {
        with(|instance| change(&mut instance.answer.as_mut().unwrap().replica))
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
    fn a_replica_that_does_not_answer_is_named() {
        let hangs = |ready| {
            answers(&with(|instance| {
                instance.ready = ready;
                instance.answer = Err("no answer within 5 s".to_owned());
            }))
        };
        says(
            hangs(true),
            Verdict::Failure,
            "osm-injector-0: no answer within 5 s",
        );
        says(hangs(false), Verdict::Warning, "osm-injector-0: no answer");
        let mut facts = fixture::healthy();
        facts.components[0].replicas = Ok(Vec::new());
        says(answers(&facts), Verdict::Failure, "osm-controller has no pod");
    }

    #[test]
    fn silent_watches_are_named() {
        let silent = |silence| {
            caches(&saying(|replica| {
                replica.watches.insert("namespaces".to_owned(), silence);
            }))
        };
        assert_eq!(silent(Some(100)).verdict, Verdict::Ok);
        says(
            silent(Some(600)),
            Verdict::Warning,
            "osm-injector-0 has heard nothing of namespaces for 10m",
        );
        says(silent(None), Verdict::Warning, "is the CRD there?");
    }

    #[test]
    fn clocks_are_compared_with_each_other() {
        let off = |seconds: i64| clocks(&saying(|replica| replica.clock_millis += seconds * 1_000));
        assert_eq!(off(20).verdict, Verdict::Ok);
        says(
            off(100),
            Verdict::Warning,
            "the clock of osm-injector-0 is 1m ahead",
        );
        says(off(-7_200), Verdict::Failure, "ahead of that of osm-injector-0");
    }

    #[test]
    fn what_a_replica_lacks_is_passed_on() {
        let finding = ready(&saying(|replica| {
            replica.not_ready.insert(
                "root".to_owned(),
                "the stored root is not the one in use".to_owned(),
            );
        }));
        says(
            finding,
            Verdict::Failure,
            "osm-injector-0: root: the stored root is not the one in use",
        );
        says(
            version(&saying(|replica| replica.version = "v1.9.9".to_owned())),
            Verdict::Warning,
            "v1.9.9",
        );
        says(
            leaders(&saying(|replica| replica.leader = false)),
            Verdict::Warning,
            "no osm-injector leads",
        );
    }
}
