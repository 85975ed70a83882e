//! Seats: how many new clients are listened to at a time.
//!
//! When thousands of clients come at once, each with much to say, what they say and cannot be read yet is memory. So a
//! client that has proved who it is waits for a seat before HTTP/2 is spoken with it, which costs no more than its TLS
//! session. Who serves it takes the seat over, and gives it back when it knows that it has read what there was. Must not be
//! held by whoever has proved nothing. Invariants: first come, first served; nobody waits longer than the patience.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The seats of a server. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Seats {
    free: Arc<Semaphore>,
    patience: Duration,
}

/// A seat, until dropped.
#[derive(Debug)]
pub struct Seat {
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    /// So many seats, at least one; who gets none within `patience` goes.
    pub fn new(count: usize, patience: Duration) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS))),
            patience,
        }
    }

    /// How long anyone waits at most.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Waits for a seat; `None` if there is none in time.
    pub async fn take(&self) -> Option<Seat> {
        let permit = timeout(self.patience, self.free.clone().acquire_owned()).await;
        Some(Seat {
            _permit: permit.ok()?.ok()?,
        })
    }
}

/// The seat of a new connection, until its first request takes it over.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover(Arc<Mutex<Option<Seat>>>);

impl Handover {
    pub(super) fn of(seat: Option<Seat>) -> Self {
        Self(Arc::new(Mutex::new(seat)))
    }

    pub(super) fn take(&self) -> Option<Seat> {
        self.0.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn seats_are_few_and_nobody_waits_for_one_forever() {
        let seats = Seats::new(1, Duration::from_secs(5));
        let seat = seats.take().await;
        assert!(seat.is_some());
        assert!(seats.take().await.is_none());
        let handover = Handover::of(seat);
        let clone = handover.clone();
        assert!(clone.take().is_some());
        assert!(handover.take().is_none());
        assert!(seats.take().await.is_some());
    }
}
