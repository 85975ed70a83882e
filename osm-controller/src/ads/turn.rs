//! Whose turn it is to be sent much, or to be compared at length.
//!
//! A change that concerns everyone, or thousands of proxies that come at once, may be megabytes and milliseconds for each
//! of them. If all had theirs at the same time, none would have it before the patience of either side is over: pings would
//! be answered late, and all would begin anew. Owns the order instead. Invariants: no more than a fixed number of streams
//! has a turn, which bounds the memory of what is under way; they get theirs in the order in which they asked; a turn is
//! over when the proxy has answered all it was sent, and soon in any case, so that proxies that do not answer hold nobody
//! up for long; no more than a fixed number of new streams wait to be read ([`serve::Seats`]), each of which holds a buffer or
//! two.

use std::{sync::Arc, time::Duration};

use osm_runtime::serve;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Responses of fewer bytes need no turn: taking turns costs more than it brings where all are over in a moment.
pub(super) const LARGE: usize = 256 * 1024;
/// Requests of fewer bytes need none.
pub(super) const LARGE_REQUEST: usize = 64 * 1024;
/// Comparisons of fewer names need none; nor do requests of proxies that list fewer.
pub(super) const HEAVY: usize = 500;
/// A proxy that has answered everything asks for the next kind within this time, or is done.
const LINGER: Duration = Duration::from_millis(50);
/// A new stream that has said nothing for this long is taken to have nothing large to say.
const SHY: Duration = Duration::from_secs(2);

/// The turns of all streams. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
    longest: Duration,
}

impl Turns {
    /// So many at a time, none longer than that.
    pub(super) fn new(count: usize, longest: Duration) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS))),
            longest,
        }
    }

    /// Waits for a turn, first come, first served.
    pub(super) async fn take(&self) -> Turn {
        // Never closed; and a turn without a permit would be the lesser evil.
        let permit = self.free.clone().acquire_owned().await.ok();
        let last = Instant::now() + self.longest;
        Turn {
            _permit: permit,
            last,
            until: last,
        }
    }
}

/// A new stream's seat, until dropped: when it turns out that its requests need no turn, or it has its turn.
#[derive(Debug)]
pub(super) struct Seat {
    _seat: serve::Seat,
    until: Instant,
}

impl Seat {
    /// Of a stream that begins now.
    pub(super) fn of(seat: serve::Seat) -> Self {
        Self {
            _seat: seat,
            until: Instant::now() + SHY,
        }
    }

    /// When it is to be dropped, unless a large request is on its way by then.
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

/// A turn, until dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
    last: Instant,
    until: Instant,
}

impl Turn {
    /// When it is to be dropped.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Something is under way.
    pub(super) fn hold(&mut self) {
        self.until = self.last;
    }

    /// Everything was answered.
    pub(super) fn rest(&mut self) {
        self.until = self.until.min(Instant::now() + LINGER);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn turns_are_few_and_in_order() {
        let turns = Turns::new(2, LONGEST);
        let mut held: Vec<_> = (0..2).map(|_| turns.take().now_or_never()).collect();
        assert!(held.iter().all(Option::is_some));
        let mut first = Box::pin(turns.take());
        let mut second = Box::pin(turns.take());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        held.pop();
        assert!((&mut second).now_or_never().is_none());
        let first = (&mut first).now_or_never();
        assert!(first.is_some());
        drop(first);
        assert!((&mut second).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_over_soon_after_the_answer_and_in_any_case() {
        let mut turn = Turns::new(1, LONGEST).take().await;
        let begun = Instant::now();
        assert_eq!(turn.until(), begun + LONGEST);
        turn.rest();
        assert_eq!(turn.until(), begun + LINGER);
        turn.hold();
        assert_eq!(turn.until(), begun + LONGEST);
        advance(LONGEST).await;
        turn.rest();
        assert_eq!(turn.until(), begun + LONGEST);
    }
}
