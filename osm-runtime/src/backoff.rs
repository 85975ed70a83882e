//! Waiting between attempts: exponential, capped, and fully jittered.
//!
//! Invariant: two processes that fail together do not try again together (law 10).

use std::time::Duration;

use rand::Rng;

/// An endless sequence of waits that grows while attempts fail.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits from `first`, doubling up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            attempt: 0,
        }
    }

    /// The next wait: between half of the present step and all of it.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.attempt.min(20)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over: an attempt succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many waits were taken since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

/// `period` changed at random by up to `share` (0.0 to 1.0) of itself, up or down.
pub fn jittered(period: Duration, share: f64) -> Duration {
    let share = share.clamp(0.0, 1.0);
    period.mul_f64(rand::rng().random_range(1.0 - share..=1.0 + share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, cap);
        assert!(backoff.next_wait() <= first);
        let last = (0..100).map(|_| backoff.next_wait()).last().unwrap();
        assert!(last <= cap && last >= cap / 2);
        backoff.reset();
        assert!(backoff.next_wait() <= first);
    }
}
