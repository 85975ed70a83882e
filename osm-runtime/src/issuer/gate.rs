//! The way to a provider outside the process: narrow, and closed for a while after it failed.
//!
//! Invariant: a provider that is slow or down is not asked by everyone at once, nor in a tight loop, however many
//! certificates are due; whoever finds the gate closed is told so at once and goes on with what it has.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use super::IssueError;
use crate::backoff::Backoff;

/// Requests at a time.
const WIDTH: usize = 8;

/// The gate to one provider.
#[derive(Debug)]
pub(super) struct Gate {
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    backoff: Backoff,
    closed_until: Option<Instant>,
    why: String,
}

impl Gate {
    /// A gate that closes for `first` after a failure, and longer each time, up to `cap`.
    pub(super) fn new(first: Duration, cap: Duration) -> Self {
        let state = State {
            backoff: Backoff::new(first, cap),
            closed_until: None,
            why: String::new(),
        };
        Self {
            permits: Semaphore::new(WIDTH),
            state: Mutex::new(state),
        }
    }

    /// Goes through the gate with `call`, which must be over within `limit`. [`IssueError::Provider`] and a timeout
    /// close it: they say that the provider is unwell; what is wrong with one request alone does not.
    pub(super) async fn pass<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, IssueError>>,
    ) -> Result<T, IssueError> {
        let _permit = match tokio::time::timeout(limit, self.permits.acquire()).await {
            Ok(permit) => permit,
            Err(_) => return Err(IssueError::Timeout(limit)),
        };
        {
            let state = self.state.lock();
            if state.closed_until.is_some_and(|until| Instant::now() < until) {
                return Err(IssueError::Closed(state.why.clone()));
            }
        }
        let outcome = tokio::time::timeout(limit, call)
            .await
            .unwrap_or(Err(IssueError::Timeout(limit)));
        let mut state = self.state.lock();
        match &outcome {
            Err(error @ (IssueError::Provider(_) | IssueError::Timeout(_))) => {
                // Those that were under way together count as one failure.
                if state.closed_until.is_none_or(|until| until <= Instant::now()) {
                    let wait = state.backoff.next_wait();
                    state.closed_until = Some(Instant::now() + wait);
                    state.why = error.to_string();
                }
            }
            _ => {
                state.backoff.reset();
                state.closed_until = None;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_provider_is_left_alone_for_a_while() {
        let gate = Gate::new(Duration::from_secs(1), Duration::from_secs(2));
        let limit = Duration::from_secs(30);
        let failing = async || Err::<(), _>(IssueError::Provider("down".into()));
        assert!(matches!(
            gate.pass(limit, failing()).await,
            Err(IssueError::Provider(_))
        ));
        let closed = gate.pass(limit, async { Ok(()) }).await.unwrap_err();
        assert!(closed.to_string().contains("down"), "{closed}");
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        gate.pass(limit, async { Ok(()) }).await.unwrap();
        let refused = async { Err::<(), _>(IssueError::Answer("this one is odd".into())) };
        assert!(matches!(
            gate.pass(limit, refused).await,
            Err(IssueError::Answer(_))
        ));
        gate.pass(limit, async { Ok(()) })
            .await
            .expect("one odd request closes nothing");
        let slow = gate
            .pass(Duration::from_millis(10), std::future::pending::<Result<(), _>>())
            .await;
        assert!(matches!(slow, Err(IssueError::Timeout(_))));
        assert!(matches!(
            gate.pass(limit, async { Ok(()) }).await,
            Err(IssueError::Closed(_))
        ));
    }
}
