//! The demo's verdict: what policy says beside what was measured, line by line.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};

/// One line.
struct Line {
    what: String,
    expected: String,
    measured: String,
    holds: bool,
}

/// All lines, in sections.
#[derive(Default)]
pub(super) struct Verdict {
    sections: Vec<(String, Vec<Line>)>,
}

impl Verdict {
    /// The lines that follow belong together.
    pub(super) fn section(&mut self, title: impl Into<String>) {
        self.sections.push((title.into(), Vec::new()));
    }

    /// Adds a line.
    pub(super) fn line(
        &mut self,
        what: impl Into<String>,
        expected: impl Into<String>,
        measured: impl Into<String>,
        holds: bool,
    ) {
        let line = Line {
            what: what.into(),
            expected: expected.into(),
            measured: measured.into(),
            holds,
        };
        if let Some((_, lines)) = self.sections.last_mut() {
            lines.push(line);
        } else {
            self.sections.push((String::new(), vec![line]));
        }
    }

    /// Adds a line about something that could not even be measured if it is an error.
    pub(super) fn measured<T>(
        &mut self,
        what: impl Into<String>,
        expected: impl Into<String>,
        result: anyhow::Result<T>,
        judge: impl FnOnce(T) -> (String, bool),
    ) {
        let (measured, holds) = match result {
            Ok(value) => judge(value),
            Err(error) => (format!("{error:#}"), false),
        };
        self.line(what, expected, measured, holds);
    }

    /// How many lines do not hold.
    pub(super) fn broken(&self) -> usize {
        self.sections
            .iter()
            .flat_map(|(_, lines)| lines)
            .filter(|line| !line.holds)
            .count()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, lines) in &self.sections {
            let mut table = Table::new();
            table
                .load_style(presets::UTF8_FULL_CONDENSED)
                .set_content_arrangement(ContentArrangement::Dynamic);
            if !table.is_tty() {
                table.set_width(150);
            }
            table.set_header([title.as_str(), "policy says", "measured", ""]);
            for line in lines {
                let mark = if line.holds { "ok" } else { "WRONG" };
                table.add_row([line.what.as_str(), &line.expected, &line.measured, mark]);
            }
            writeln!(formatter, "{table}\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_line_counts() {
        let mut verdict = Verdict::default();
        verdict.section("calls");
        verdict.line("a", "200", "200", true);
        verdict.line("b", "403", "200", false);
        verdict.measured("c", "200", Err::<(), _>(anyhow::anyhow!("no pod")), |()| {
            (String::new(), true)
        });
        assert_eq!(verdict.broken(), 2);
        let text = verdict.to_string();
        assert!(text.contains("WRONG") && text.contains("no pod"), "{text}");
    }
}
