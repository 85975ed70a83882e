//! Waiting between attempts to reach a controller: as long as Envoy would, and never in step with other pods.

use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_millis(300);
/// Longer, and proxies would stay without a controller long after one is back.
const LONGEST: Duration = Duration::from_secs(4);

#[derive(Debug, Default)]
pub(super) struct Retry {
    attempts: u32,
}

impl Retry {
    /// The next wait: between half of the present step and all of it.
    pub(super) fn next_wait(&mut self) -> Duration {
        let step = FIRST.saturating_mul(1 << self.attempts.min(10)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over: a controller has answered.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_over() {
        let mut retry = Retry::default();
        assert!(retry.next_wait() <= FIRST);
        for _ in 0..40 {
            assert!(retry.next_wait() <= LONGEST);
        }
        assert!(retry.next_wait() >= LONGEST / 2);
        retry.reset();
        assert!(retry.next_wait() <= FIRST);
    }
}
