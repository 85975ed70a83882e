//! Findings as text: all of them in groups, or in short what is wrong.

use super::finding::{Finding, Verdict};

impl Verdict {
    fn mark(self) -> &'static str {
        match self {
            Verdict::Ok => "√",
            Verdict::Warning => "‼",
            Verdict::Failure => "×",
        }
    }
}

/// The worst of all.
fn worst(findings: &[Finding]) -> Verdict {
    findings
        .iter()
        .map(|finding| finding.verdict)
        .max()
        .unwrap_or(Verdict::Ok)
}

/// All findings, in their groups, with reasons and fixes.
pub(crate) fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut groups: Vec<&str> = Vec::new();
    for finding in findings {
        if !groups.contains(&finding.group) {
            groups.push(finding.group);
        }
    }
    for group in groups {
        text.push_str(&format!("{group}\n{}\n", "-".repeat(group.chars().count())));
        for finding in findings.iter().filter(|finding| finding.group == group) {
            text.push_str(&format!("{} {}\n", finding.verdict.mark(), finding.what));
            if let Some(why) = &finding.why {
                text.push_str(&format!("    {why}\n"));
            }
            if let Some(fix) = &finding.fix {
                text.push_str(&format!("    fix: {fix}\n    see {}\n", finding.docs));
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("Status check results are {}\n", worst(findings).mark()));
    text
}

/// One line for each finding that is not as it should be; nothing when all are.
pub(crate) fn short(findings: &[Finding]) -> String {
    let bad = findings.iter().filter(|finding| finding.verdict != Verdict::Ok);
    bad.map(|finding| {
        let why = finding.why.as_deref().unwrap_or(&finding.what);
        format!("{} {}: {why}\n", finding.verdict.mark(), finding.code)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Check;
    use super::*;

    fn findings() -> Vec<Finding> {
        let check = |group, code| Check {
            group,
            code,
            what: "it holds",
        };
        vec![
            check("one", "osm-a").ok_with("3 of 3"),
            check("two", "osm-b").warn("it is slow", "hurry"),
            check("one", "osm-c").fail("it is gone", "bring it back"),
        ]
    }

    #[test]
    fn findings_are_grouped_and_come_with_reason_fix_and_place() {
        assert_eq!(
            lines(&findings()),
            "one\n---\n√ it holds (3 of 3)\n× it holds\n    it is gone\n    fix: bring it back\n    see docs/checks.md#osm-c\n\n\
             two\n---\n‼ it holds\n    it is slow\n    fix: hurry\n    see docs/checks.md#osm-b\n\nStatus check results are ×\n"
        );
    }

    #[test]
    fn in_short_only_what_is_wrong_is_said() {
        assert_eq!(short(&findings()), "‼ osm-b: it is slow\n× osm-c: it is gone\n");
        assert_eq!(short(&findings()[..1]), "");
    }
}
