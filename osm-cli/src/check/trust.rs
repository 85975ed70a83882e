//! Whether the replicas trust one root, and how long it and their own certificates live.

use std::collections::{BTreeMap, BTreeSet};

use super::control_plane::GROUP;
use super::facts::Facts;
use super::finding::{Check, Finding, list, span, span_of};
use super::replicas::judged;

/// A root should be replaced in good time.
const ROOT_LIFE: i64 = 60 * 86_400;
/// Certificates are renewed with half their life left: one with less than this share is not being renewed.
pub(super) const RENEWED_BY: f64 = 0.4;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    [root, root_life, certificates].map(|check| check(facts)).into()
}

fn check(code: &'static str, what: &'static str) -> Check {
    Check {
        group: GROUP,
        code,
        what,
    }
}

fn restart(facts: &Facts) -> String {
    format!(
        "{} rollout restart deployment/osm-controller deployment/osm-injector",
        facts.kubectl()
    )
}

/// The first part of a fingerprint, which tells roots apart well enough for a person.
fn brief(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

fn root(facts: &Facts) -> Finding {
    let check = check("osm-cp-root", "one root on all replicas");
    judged(facts, check, |answers| {
        let mut holders: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
        for (pod, answer) in answers {
            let roots = answer.replica.roots.iter().map(|root| brief(&root.fingerprint));
            holders.entry(roots.collect()).or_default().push(pod);
        }
        let fix = format!(
            "keep the root that most replicas and pods trust (Secret osm-ca-bundle, or the provider), then {}",
            restart(facts)
        );
        let mut sides: Vec<_> = holders.into_iter().collect();
        match sides.as_slice() {
            [(roots, pods)] if roots.is_empty() => {
                check.fail(format!("{} has no root yet", pods.join(", ")), fix)
            }
            [(roots, _)] => check.ok_with(roots.join(" and ")),
            _ => {
                sides.sort_by_key(|(_, pods)| std::cmp::Reverse(pods.len()));
                let side = |(roots, pods): &(Vec<&str>, Vec<&str>)| {
                    let roots = if roots.is_empty() {
                        "nothing".to_owned()
                    } else {
                        roots.join(" and ")
                    };
                    format!("{} trust {roots}", pods.join(", "))
                };
                check.fail(list(sides.iter().map(side).collect()), fix)
            }
        }
    })
}

fn root_life(facts: &Facts) -> Finding {
    let check = check("osm-cp-root-life", "the root lives for another 60 days");
    judged(facts, check, |answers| {
        let (mut failures, mut warnings, mut lives) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for (_, answer) in answers {
            for root in &answer.replica.roots {
                let left = answer.until(root.not_after);
                let name = brief(&root.fingerprint);
                lives.push(left);
                if left <= 0 {
                    failures.insert(format!("root {name} has expired"));
                } else if left < ROOT_LIFE {
                    warnings.insert(format!("root {name} expires in {}", span(left)));
                }
            }
        }
        let Some(first) = lives.into_iter().min() else {
            return check.unknown("no replica has a root");
        };
        if failures.is_empty() && warnings.is_empty() {
            return check.ok_with(span(first));
        }
        let fix = "put another root in its place: see docs/checks.md#osm-cp-root-life";
        check.of(
            failures.into_iter().collect(),
            warnings.into_iter().collect(),
            fix,
        )
    })
}

fn certificates(facts: &Facts) -> Finding {
    let check = check("osm-cp-certificates", "the replicas' own certificates are fresh");
    judged(facts, check, |answers| {
        let (mut failures, mut warnings, mut first) = (Vec::new(), Vec::new(), i64::MAX);
        for (pod, answer) in answers {
            if answer.replica.certificates.is_empty() {
                failures.push(format!("{pod} has no certificate"));
            }
            for (name, life) in &answer.replica.certificates {
                let left = answer.until(life.not_after);
                first = first.min(left);
                let text = format!(
                    "{pod}: {name} has {} of {} left",
                    span(left),
                    span_of(life.lifetime_seconds)
                );
                if left <= 0 {
                    failures.push(text);
                } else if (left as f64) < life.lifetime_seconds as f64 * RENEWED_BY {
                    warnings.push(text);
                }
            }
        }
        if failures.is_empty() && warnings.is_empty() {
            return check.ok_with(format!("{} left at least", span(first)));
        }
        let fix = format!(
            "renewal fails: {} logs POD shows why (`issuing a certificate failed`); repair the certificate provider",
            facts.kubectl()
        );
        check.of(failures, warnings, fix)
    })
}

#[cfg(test)]
mod tests {
    use osm_core::status::{Life, Replica, RootInUse};

    use super::super::{Verdict, fixture};
    use super::*;

    /// The healthy mesh, with what one injector says changed.
    fn saying(change: impl FnOnce(&mut Replica)) -> Facts {
        let mut facts = fixture::healthy();
        let injector = &mut facts.components[1].replicas.as_mut().unwrap()[0];
        change(&mut injector.answer.as_mut().unwrap().replica);
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
    fn a_replica_with_another_root_is_told_from_the_others() {
        let other = RootInUse {
            fingerprint: "ff".repeat(32),
            not_after: fixture::NOW + ROOT_LIFE * 2,
        };
        let finding = root(&saying(|replica| replica.roots = vec![other.clone()]));
        says(
            finding.clone(),
            Verdict::Failure,
            "osm-injector-0 trust ffffffffffffffff",
        );
        assert!(
            finding.why.unwrap().starts_with("osm-controller-0, "),
            "the many come first"
        );
        says(
            root(&saying(|replica| replica.roots.clear())),
            Verdict::Failure,
            "osm-injector-0 trust nothing",
        );
        // During a rotation all trust both.
        let mut facts = fixture::healthy();
        for component in &mut facts.components {
            for instance in component.replicas.as_mut().unwrap() {
                instance
                    .answer
                    .as_mut()
                    .unwrap()
                    .replica
                    .roots
                    .push(other.clone());
            }
        }
        assert_eq!(root(&facts).verdict, Verdict::Ok);
    }

    #[test]
    fn lives_are_judged_by_the_replicas_own_clocks() {
        let life = |left: i64| {
            certificates(&saying(|replica| {
                let life = Life {
                    not_after: replica.clock_millis / 1_000 + left,
                    lifetime_seconds: 86_400,
                };
                replica
                    .certificates
                    .insert("webhook-certificate".to_owned(), life);
            }))
        };
        assert_eq!(life(43_200).verdict, Verdict::Ok);
        says(life(20_000), Verdict::Warning, "5h33m of 1d left");
        says(life(-60), Verdict::Failure, "-1m");
        let root = |left: i64| {
            root_life(&saying(|replica| {
                replica.roots[0].not_after = replica.clock_millis / 1_000 + left;
            }))
        };
        says(root(86_400 * 30), Verdict::Warning, "expires in 30d");
        says(root(0), Verdict::Failure, "has expired");
    }
}
