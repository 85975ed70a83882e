//! What was measured, for people and for programs.

use std::fs;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

use crate::phase::Phase;

/// Everything a run found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Where it ran.
    pub(crate) machine: Machine,
    /// What was measured, in order.
    pub(crate) phases: Vec<Phase>,
    /// What was judged.
    pub(crate) verdicts: Vec<Verdict>,
}

/// The machine, as far as it matters.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Processors this process may use.
    pub(crate) processors: usize,
    /// The processor's name.
    pub(crate) model: String,
    /// The kernel.
    pub(crate) kernel: String,
}

/// A comparison of two figures of the same run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// What is compared.
    pub(crate) what: String,
    /// The ratio, or the count.
    pub(crate) value: f64,
    /// What it may be at most.
    pub(crate) limit: f64,
}

impl Verdict {
    /// Whether it is kept.
    pub(crate) fn holds(&self) -> bool {
        self.value <= self.limit
    }
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model
            .and_then(|rest| rest.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            model: model.to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Report {
    /// The report of these phases.
    pub(crate) fn new(phases: Vec<Phase>, verdicts: Vec<Verdict>) -> Self {
        Self {
            machine: Machine::here(),
            phases,
            verdicts,
        }
    }

    /// Whether every verdict is kept.
    pub(crate) fn holds(&self) -> bool {
        self.verdicts.iter().all(Verdict::holds)
    }

    /// As JSON.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// As tables.
    pub(crate) fn text(&self) -> String {
        let mut text = self.phases_table().to_string();
        if !self.verdicts.is_empty() {
            text.push_str("\n\n");
            text.push_str(&self.verdicts_table().to_string());
        }
        text
    }

    fn phases_table(&self) -> Table {
        let mut table = table(&[
            "phase",
            "proxies",
            "p50 ms",
            "p99 ms",
            "last ms",
            "responses",
            "resources",
            "again",
            "kB",
            "CPU s",
            "load %",
            "MB",
            "peak MB",
            "notes",
        ]);
        for phase in &self.phases {
            let proxies = match phase.expected {
                Some(expected) if expected != phase.proxies => format!("{} of {expected}", phase.proxies),
                _ => phase.proxies.to_string(),
            };
            let milliseconds = |seconds: f64| format!("{:.0}", seconds * 1e3);
            let mut notes = phase.note.clone();
            for (count, what) in [
                (phase.refusals, "refused"),
                (phase.failures, "failed"),
                (phase.rejections, "rejected"),
            ] {
                if count > 0 {
                    notes.push_str(&format!(" {count} {what}"));
                }
            }
            table.add_row([
                phase.name.clone(),
                proxies,
                milliseconds(phase.latency.p50),
                milliseconds(phase.latency.p99),
                milliseconds(phase.latency.max),
                phase.sent.all.responses.to_string(),
                phase.sent.all.resources.to_string(),
                phase.sent.all.repeated.to_string(),
                (phase.sent.all.bytes / 1_000).to_string(),
                format!("{:.3}", phase.cpu),
                format!("{:.1}", phase.load * 100.0),
                format!("{:.0}", phase.resident),
                format!("{:.0}", phase.peak),
                notes.trim().to_owned(),
            ]);
        }
        table
    }

    fn verdicts_table(&self) -> Table {
        let mut table = table(&["judged", "value", "at most", ""]);
        for verdict in &self.verdicts {
            let mark = if verdict.holds() { "ok" } else { "TOO MUCH" };
            table.add_row([
                verdict.what.clone(),
                format!("{:.2}", verdict.value),
                format!("{:.2}", verdict.limit),
                mark.to_owned(),
            ]);
        }
        table
    }
}

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(heads);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
