//! One finding: what was looked at, how it stands, why, and what to do.

use std::fmt::Display;

use serde::Serialize;

/// Most things that one finding lists.
const LISTED: usize = 5;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should.
    Ok,
    /// Somebody should look, or nobody can tell.
    Warning,
    /// Something is broken, or will be felt when the next thing breaks.
    Failure,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) group: &'static str,
    /// Never changes its meaning.
    pub(crate) code: &'static str,
    pub(crate) verdict: Verdict,
    /// What should hold.
    pub(crate) what: String,
    /// What was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
    /// Where it is explained.
    pub(crate) docs: String,
}

impl Finding {
    fn new(group: &'static str, code: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            group,
            code,
            verdict: Verdict::Ok,
            what: what.into(),
            why: None,
            fix: None,
            docs: format!("docs/checks.md#{code}"),
        }
    }
}

/// What is looked at, before it is known how it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub(crate) group: &'static str,
    pub(crate) code: &'static str,
    pub(crate) what: &'static str,
}

impl Check {
    /// As it should be.
    pub(crate) fn ok(self) -> Finding {
        Finding::new(self.group, self.code, self.what)
    }

    /// As it should be, with what was seen.
    pub(crate) fn ok_with(self, seen: impl Display) -> Finding {
        Finding::new(self.group, self.code, format!("{} ({seen})", self.what))
    }

    /// Somebody should look.
    pub(crate) fn warn(self, why: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.bad(Verdict::Warning, why.into(), fix.into())
    }

    /// Something is broken.
    pub(crate) fn fail(self, why: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.bad(Verdict::Failure, why.into(), fix.into())
    }

    /// A failure if there are any, a warning if there are only `warnings`, else good.
    pub(crate) fn of(self, failures: Vec<String>, warnings: Vec<String>, fix: impl Into<String>) -> Finding {
        match (failures.is_empty(), warnings.is_empty()) {
            (true, true) => self.ok(),
            (true, false) => self.warn(list(warnings), fix),
            (false, _) => self.fail(list([failures, warnings].concat()), fix),
        }
    }

    /// Nobody can tell.
    pub(crate) fn unknown(self, why: impl Display) -> Finding {
        let fix = "see to it that it can be asked: your rights in the cluster, and the replicas named by osm-cp-answers";
        self.bad(
            Verdict::Warning,
            format!("it could not be found out: {why}"),
            fix.to_owned(),
        )
    }

    fn bad(self, verdict: Verdict, why: String, fix: String) -> Finding {
        Finding {
            verdict,
            why: Some(why),
            fix: Some(fix),
            ..self.ok()
        }
    }
}

/// The first few of many things.
pub(crate) fn list(things: Vec<String>) -> String {
    let more = things.len().saturating_sub(LISTED);
    let mut text = things.into_iter().take(LISTED).collect::<Vec<_>>().join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

/// A span of time for a person.
pub(crate) fn span(seconds: i64) -> String {
    let (sign, seconds) = if seconds < 0 {
        ("-", seconds.unsigned_abs())
    } else {
        ("", seconds.unsigned_abs())
    };
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let pair = |large: u64, unit: &str, small: u64, rest: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{rest}"),
    };
    let text = match (days, seconds / 3_600, seconds / 60) {
        (3.., _, _) => format!("{days}d"),
        (1.., _, _) => pair(days, "d", hours, "h"),
        (_, 1.., _) => pair(hours, "h", minutes, "m"),
        (_, _, 1..) => format!("{minutes}m"),
        _ => format!("{seconds}s"),
    };
    format!("{sign}{text}")
}

/// As [`span`], of a time that is never negative.
pub(crate) fn span_of(seconds: u64) -> String {
    span(i64::try_from(seconds).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m"),
            (43_200, "12h"),
            (5_400, "1h30m"),
            (90_000, "1d1h"),
            (172_800, "2d"),
            (864_000, "10d"),
            (-7_200, "-2h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let things = |count| list((0..count).map(|number: usize| number.to_string()).collect());
        assert_eq!(things(2), "0; 1");
        assert_eq!(things(7), "0; 1; 2; 3; 4; and 2 more");
    }

    #[test]
    fn one_failure_outweighs_warnings() {
        let check = Check {
            group: "g",
            code: "osm-x",
            what: "x holds",
        };
        let of = |failures: &[&str], warnings: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            check.of(own(failures), own(warnings), "do this")
        };
        assert_eq!(of(&[], &[]).verdict, Verdict::Ok);
        assert_eq!(of(&[], &["w"]).verdict, Verdict::Warning);
        let both = of(&["f"], &["w"]);
        assert_eq!(
            (both.verdict, both.why.as_deref()),
            (Verdict::Failure, Some("f; w"))
        );
        assert_eq!(both.docs, "docs/checks.md#osm-x");
    }
}
