//! Progress of long work on standard error: a spinner on a terminal, plain lines elsewhere, with the time it took.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One piece of work, from its start to its end.
pub(crate) struct Step {
    name: String,
    spinner: Option<ProgressBar>,
    started: Instant,
    shown: String,
}

impl Step {
    /// Begins to show a piece of work.
    pub(crate) fn begin(name: impl Into<String>) -> Step {
        let name = name.into();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner()
                .with_style(style)
                .with_message(name.clone());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        Step {
            name,
            spinner,
            started: Instant::now(),
            shown: String::new(),
        }
    }

    /// Shows how far it is; a line is printed only when that has changed.
    pub(crate) fn update(&mut self, how_far: &str) {
        if self.shown == how_far {
            return;
        }
        how_far.clone_into(&mut self.shown);
        match &self.spinner {
            Some(spinner) => spinner.set_message(format!("{}: {how_far}", self.name)),
            None => eprintln!("  {}: {how_far} ({})", self.name, self.elapsed()),
        }
    }

    /// It is done.
    pub(crate) fn done(self) {
        self.end("done");
    }

    /// It failed; the error itself is printed elsewhere.
    pub(crate) fn failed(self) {
        self.end("failed");
    }

    fn end(self, how: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("  {}: {how} ({})", self.name, self.elapsed());
    }

    fn elapsed(&self) -> String {
        format!("{:.1}s", self.started.elapsed().as_secs_f64())
    }
}
