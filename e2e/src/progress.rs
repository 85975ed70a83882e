//! What a long command shows while it works: the step it is at, and how long each took.
//!
//! On a terminal a spinner for each running step; elsewhere plain lines. Everything goes to standard error, so that
//! standard output stays usable in scripts.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Steps of one command. Steps may run at once, from several threads.
pub struct Progress {
    bars: Option<MultiProgress>,
    begun: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Starts the clock of the whole command.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            bars,
            begun: Instant::now(),
        }
    }

    /// Time since the command began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Does one step and says how long it took.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let bar = self.bars.as_ref().map(|bars| bars.add(spinner(what)));
        let result = work();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let mark = if result.is_ok() { "ok" } else { "FAILED" };
        self.say(&format!("{mark:>6}  {what} ({})", seconds(begun.elapsed())));
        result
    }

    /// As [`Progress::step`], for a step that takes minutes: also says beforehand what is being waited for.
    pub fn long_step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.bars.is_none() {
            self.say(&format!("   ...  {what}"));
        }
        self.step(what, work)
    }

    /// One line among the steps.
    pub fn say(&self, line: &str) {
        match &self.bars {
            // The terminal refusing a line is no reason to fail.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }
}

fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner:>6}  {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// `2.3 s`, `4 min 10 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..=59 => format!("{:.1} s", duration.as_secs_f64()),
        long => format!("{} min {} s", long / 60, long % 60),
    }
}

/// Asks `done` until it says yes. An error of `done` ends the wait at once; `what` completes "waiting for ...".
pub fn wait_for(what: &str, at_most: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !done()? {
        if begun.elapsed() > at_most {
            bail!("gave up waiting for {what} after {}", seconds(at_most));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(2340)), "2.3 s");
        assert_eq!(seconds(Duration::from_secs(250)), "4 min 10 s");
    }

    #[test]
    fn waiting_ends() {
        let error = wait_for("nothing", Duration::from_millis(10), || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("waiting for nothing"));
        let mut asked = 0;
        wait_for("the third time", Duration::from_secs(5), || {
            asked += 1;
            Ok(asked == 3)
        })
        .unwrap();
        assert_eq!(asked, 3);
    }
}
