//! How fast new streams are let in.
//!
//! After a replica is gone its proxies all come at once. They are let in at a steady rate, in the order they came;
//! whoever would wait too long is told to come back a little later, each after a different time. Nobody starves: a
//! lone replica lets everyone in eventually, whatever their number.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Lets in a number of streams at once after a quiet time, and then one each `interval`.
#[derive(Debug)]
pub(super) struct Admission {
    interval: Duration,
    burst: u32,
    /// When the next stream may enter, were there no burst.
    next: Mutex<Instant>,
}

impl Admission {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        Self {
            interval: Duration::from_secs(1) / per_second,
            burst: per_second,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn of a new stream.
    ///
    /// # Errors
    /// How long to stay away, when the turn would come later than in `patience`.
    pub(super) async fn enter(&self, patience: Duration) -> Result<(), Duration> {
        #[cfg(feature = "sabotage")]
        if osm_core::sabotage::Fault::NoLimiter.is_on() {
            return Ok(());
        }
        let turn = {
            let mut next = self.next.lock();
            let now = Instant::now();
            let earliest = now.checked_sub(self.interval * self.burst).unwrap_or(now);
            let turn = (*next).max(earliest);
            let wait = turn.saturating_duration_since(now);
            if wait > patience {
                return Err(wait);
            }
            *next = turn + self.interval;
            turn
        };
        sleep_until(turn).await;
        Ok(())
    }
}

/// A bucket of tokens: so many at once, so many each second after that.
#[derive(Debug)]
pub(super) struct Bucket {
    size: u32,
    per_second: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(size: u32, per_second: u32) -> Self {
        Self {
            size,
            per_second,
            tokens: f64::from(size),
            filled: Instant::now(),
        }
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let earned = now.duration_since(self.filled).as_secs_f64() * f64::from(self.per_second);
        self.tokens = (self.tokens + earned).min(f64::from(self.size));
        self.filled = now;
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self) -> bool {
        self.fill();
        let any = self.tokens >= 1.0;
        if any {
            self.tokens -= 1.0;
        }
        any
    }

    /// When there will be a token.
    pub(super) fn ready_at(&mut self) -> Instant {
        self.fill();
        let missing = (1.0 - self.tokens).max(0.0);
        self.filled + Duration::from_secs_f64(missing / f64::from(self.per_second.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_enters_at_the_rate_and_the_rest_is_told_when_to_come_back() {
        let admission = Admission::new(100);
        tokio::time::advance(Duration::from_secs(10)).await;
        let begun = Instant::now();
        let all =
            futures::future::join_all((0..1_000).map(|_| admission.enter(Duration::from_secs(5)))).await;
        let entered = all.iter().filter(|result| result.is_ok()).count();
        assert!(
            (590..=602).contains(&entered),
            "{entered} entered in {:?}",
            begun.elapsed()
        );
        assert!(
            all.iter()
                .filter_map(|result| result.err())
                .all(|wait| wait > Duration::from_secs(5))
        );
        assert!(
            admission.enter(Duration::from_secs(5)).await.is_ok(),
            "nobody is refused for long"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn buckets_refill() {
        let mut bucket = Bucket::new(3, 1);
        assert_eq!([(); 4].map(|()| bucket.take()), [true, true, true, false]);
        sleep_until(bucket.ready_at()).await;
        assert!(bucket.take() && !bucket.take());
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!([(); 4].map(|()| bucket.take()), [true, true, true, false]);
    }
}
