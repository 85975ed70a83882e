//! Judging a running mesh: facts in, findings out.
//!
//! `gather` asks the cluster and every replica, a fixed number of questions however large the mesh is; the other modules
//! are plain functions from [`Facts`] to [`Finding`]s and ask nobody anything. Invariants: each finding has a code that
//! never changes its meaning, and a place in `docs/checks.md` of that name; what could not be found out is a warning,
//! never taken for good; whatever does not answer is named, and nothing waits for it longer than for the others.

mod control_plane;
mod data_plane;
mod facts;
mod finding;
#[cfg(test)]
mod fixture;
mod gather;
mod high_availability;
mod outage;
mod render;
mod replicas;
mod trust;
mod webhooks;

pub(crate) use facts::Facts;
pub(crate) use finding::{Finding, Verdict, span};
pub(crate) use gather::gather;
pub(crate) use outage::{budget_line, outage_budget, promise};
pub(crate) use render::{lines, short};

/// What is judged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope {
    /// High availability.
    pub(crate) ha: bool,
    /// Each proxy.
    pub(crate) proxy: bool,
}

/// Judges the mesh.
pub(crate) fn judge(facts: &Facts, scope: Scope) -> Vec<Finding> {
    let mut findings = control_plane::judge(facts);
    findings.extend(replicas::judge(facts));
    findings.extend(trust::judge(facts));
    findings.extend(webhooks::judge(facts));
    findings.extend(outage::judge(facts));
    findings.extend(data_plane::judge(facts, scope.proxy));
    let mut available = high_availability::judge(facts);
    if !scope.ha {
        // A budget that blocks drains is wrong whatever was asked for.
        available
            .retain(|finding| finding.code == high_availability::BUDGET && finding.verdict != Verdict::Ok);
    }
    findings.extend(available);
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_healthy_mesh_has_nothing_to_say_against_it() {
        let scope = Scope {
            ha: true,
            proxy: true,
        };
        for finding in judge(&fixture::healthy(), scope) {
            assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
        }
    }

    #[test]
    fn every_code_is_explained_in_the_documents_and_no_other_is() {
        let scope = Scope {
            ha: true,
            proxy: true,
        };
        let codes: BTreeSet<String> = judge(&fixture::healthy(), scope)
            .into_iter()
            .map(|finding| finding.code.to_owned())
            .collect();
        let document = include_str!("../../../docs/checks.md");
        let explained: BTreeSet<String> = document
            .lines()
            .filter_map(|line| line.strip_prefix("### "))
            .map(str::to_owned)
            .collect();
        assert_eq!(codes, explained);
    }

    #[test]
    fn whatever_is_wrong_comes_with_what_to_do() {
        let scope = Scope {
            ha: true,
            proxy: true,
        };
        for facts in [fixture::broken(), fixture::unknown()] {
            let findings = judge(&facts, scope);
            assert_eq!(
                findings.len(),
                judge(&fixture::healthy(), scope).len(),
                "no check is left out"
            );
            for finding in findings.iter().filter(|finding| finding.verdict != Verdict::Ok) {
                assert!(finding.why.is_some() && finding.fix.is_some(), "{finding:?}");
            }
        }
        let silent = judge(&fixture::unknown(), scope);
        let good: Vec<_> = silent
            .iter()
            .filter(|finding| finding.verdict == Verdict::Ok)
            .collect();
        assert!(good.is_empty(), "what is not known is not good: {good:?}");
    }

    #[test]
    fn high_availability_is_judged_when_asked_for_but_for_budgets_that_block() {
        let groups = |facts: &Facts, ha| {
            let findings = judge(facts, Scope { ha, proxy: false });
            findings
                .iter()
                .filter(|finding| finding.group == high_availability::GROUP)
                .count()
        };
        assert_eq!(groups(&fixture::healthy(), false), 0);
        assert!(groups(&fixture::healthy(), true) > 4);
        assert_eq!(groups(&fixture::broken(), false), 1);
    }
}
