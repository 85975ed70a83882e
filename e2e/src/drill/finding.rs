//! What drills find: one line for each thing measured, with the bound it must keep, and the whole as table and JSON.
//!
//! Owns the verdict. Invariant: a drill passes only if it injected a fault, sent traffic, measured something, and
//! everything measured kept its bound.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::traffic::Loss;
use crate::progress::seconds;

/// One thing that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// How much of it.
    pub measured: String,
    /// How much is allowed.
    pub bound: String,
    /// Whether it is kept.
    pub holds: bool,
}

/// What came of one drill.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The drill's name.
    pub drill: &'static str,
    /// What it breaks.
    pub fault: &'static str,
    /// How often it did.
    pub faults: u64,
    /// Everything measured.
    pub findings: Vec<Finding>,
    /// The requests meanwhile; none if they could not be counted.
    pub traffic: Option<Loss>,
    /// Why it could not go on.
    pub error: Option<String>,
    /// How long it took, in seconds.
    pub took: f64,
}

impl Outcome {
    /// Why it does not pass, if it does not.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = self.error.iter().cloned().collect();
        if self.faults == 0 {
            complaints.push("it injected no fault".to_owned());
        }
        if self.traffic.as_ref().is_none_or(|traffic| traffic.sent == 0) {
            complaints.push("it sent no traffic".to_owned());
        }
        if self.findings.is_empty() {
            complaints.push("it measured nothing".to_owned());
        }
        let broken = self.findings.iter().filter(|finding| !finding.holds);
        complaints.extend(
            broken.map(|finding| format!("{}: {}, bound {}", finding.what, finding.measured, finding.bound)),
        );
        complaints
    }

    /// Whether it passes.
    pub fn passed(&self) -> bool {
        self.complaints().is_empty()
    }
}

/// All drills of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The fault that was built in, if this is a run that must fail.
    pub sabotage: Option<&'static str>,
    /// In the order they ran.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// The drills whose outcome is not the wanted one: those that failed, or, with a fault built in, that passed, or
    /// failed before they had broken anything.
    pub fn unwanted(&self) -> Vec<&'static str> {
        let unwanted = |outcome: &&Outcome| match self.sabotage {
            None => !outcome.passed(),
            Some(_) => outcome.passed() || outcome.faults == 0,
        };
        self.outcomes
            .iter()
            .filter(unwanted)
            .map(|outcome| outcome.drill)
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic);
        if !table.is_tty() {
            table.set_width(160);
        }
        table.set_header(["drill", "fault", "measured", "bound", "verdict"]);
        for outcome in &self.outcomes {
            let fault = format!("{} ({} times)", outcome.fault, outcome.faults);
            let mut first = Some((outcome.drill, fault.as_str()));
            for finding in &outcome.findings {
                let (drill, fault) = first.take().unwrap_or_default();
                let measured = format!("{}: {}", finding.what, finding.measured);
                let verdict = if finding.holds { "holds" } else { "BROKEN" };
                table.add_row([drill, fault, &measured, &finding.bound, verdict]);
            }
            let (drill, fault) = first.take().unwrap_or_default();
            let verdict = if outcome.passed() { "PASSED" } else { "FAILED" };
            let took = seconds(std::time::Duration::from_secs_f64(outcome.took));
            let summary = match &outcome.error {
                Some(error) => format!("could not go on: {error}"),
                None => format!("took {took}"),
            };
            table.add_row([drill, fault, &summary, "", verdict]);
        }
        write!(formatter, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            drill: "d",
            fault: "f",
            faults: 1,
            findings: vec![Finding {
                what: "lost".into(),
                measured: "0".into(),
                bound: "0".into(),
                holds: true,
            }],
            traffic: Some(Loss {
                sent: 1,
                ..Loss::default()
            }),
            error: None,
            took: 1.0,
        }
    }

    #[test]
    fn without_a_fault_without_traffic_without_a_finding_nothing_passes() {
        assert!(outcome().passed());
        let broken: [fn(&mut Outcome); 6] = [
            |outcome| outcome.faults = 0,
            |outcome| outcome.traffic = None,
            |outcome| outcome.traffic = Some(Loss::default()),
            |outcome| outcome.findings.clear(),
            |outcome| outcome.findings[0].holds = false,
            |outcome| outcome.error = Some("no pod".into()),
        ];
        for (number, breaks) in broken.iter().enumerate() {
            let mut outcome = outcome();
            breaks(&mut outcome);
            assert_eq!(outcome.complaints().len(), 1, "{number}: {outcome:?}");
        }
    }

    #[test]
    fn a_sabotaged_build_must_fail() {
        let mut report = Report {
            sabotage: None,
            outcomes: vec![outcome()],
        };
        assert!(report.unwanted().is_empty());
        report.sabotage = Some("no-drain");
        assert_eq!(report.unwanted(), ["d"]);
        report.outcomes[0].findings[0].holds = false;
        assert!(report.unwanted().is_empty());
        report.outcomes[0].faults = 0;
        assert_eq!(report.unwanted(), ["d"]);
        assert!(report.to_string().contains("BROKEN"));
    }
}
