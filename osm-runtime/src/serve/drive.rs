//! One task for a connection and what serves its streams.
//!
//! Owns who is run at a wake-up: only those it was for, and whom these wake in turn, until nobody is left. Invariant: a
//! wake-up is never lost, whoever it is for and whenever it comes.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;
use hyper_util::server::graceful::GracefulConnection;

use super::crew::Crew;

/// Rounds before others get the thread.
const ROUNDS: usize = 32;

/// A connection and what runs within its task.
pub(crate) struct Driven<C> {
    connection: Pin<Box<C>>,
    crew: Crew,
    task: Arc<Task>,
    connections_turn: Turn,
    crews_turn: Turn,
}

#[derive(Default)]
struct Task {
    waker: AtomicWaker,
    /// It runs, and looks whose turn it is before it stops.
    running: AtomicBool,
}

/// Whether one of the two is to be run.
struct Turn {
    bell: Arc<Bell>,
    waker: Waker,
}

struct Bell {
    rung: AtomicBool,
    task: Arc<Task>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order: either the task is seen to have stopped, or it sees the bell.
        self.rung.store(true, SeqCst);
        if !self.task.running.load(SeqCst) {
            self.task.waker.wake();
        }
    }
}

impl Turn {
    /// At first everyone is run.
    fn new(task: &Arc<Task>) -> Self {
        let bell = Arc::new(Bell {
            rung: AtomicBool::new(true),
            task: task.clone(),
        });
        Self {
            waker: bell.clone().into(),
            bell,
        }
    }

    fn take(&self) -> bool {
        self.bell.rung.swap(false, SeqCst)
    }
}

impl<C: GracefulConnection> Driven<C> {
    pub(crate) fn new(connection: C, crew: Crew) -> Self {
        let task = Arc::default();
        Self {
            connection: Box::pin(connection),
            crew,
            connections_turn: Turn::new(&task),
            crews_turn: Turn::new(&task),
            task,
        }
    }

    /// Asks the connection to go.
    pub(crate) fn let_go(&mut self) {
        self.connection.as_mut().graceful_shutdown();
        self.connections_turn.bell.wake_by_ref();
    }

    /// Drops the connection; what served its streams is left.
    pub(crate) fn cut(self) -> Crew {
        self.crew
    }

    fn rounds(&mut self) -> Poll<<Self as Future>::Output> {
        for _ in 0..ROUNDS {
            let (crew, connection) = (self.crews_turn.take(), self.connections_turn.take());
            // What the crew has to say goes out at once.
            if crew {
                let _ = self.crew.poll(&mut Context::from_waker(&self.crews_turn.waker));
            }
            if connection || self.connections_turn.take() {
                let mut context = Context::from_waker(&self.connections_turn.waker);
                if let Poll::Ready(ended) = self.connection.as_mut().poll(&mut context) {
                    return Poll::Ready(ended);
                }
            } else if !crew {
                break;
            }
        }
        Poll::Pending
    }
}

impl<C: GracefulConnection> Future for Driven<C> {
    type Output = Result<(), C::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.task.waker.register(context.waker());
        this.task.running.store(true, SeqCst);
        let ended = this.rounds();
        this.task.running.store(false, SeqCst);
        let turns = [&this.crews_turn, &this.connections_turn];
        if ended.is_pending() && turns.iter().any(|turn| turn.bell.rung.load(SeqCst)) {
            context.waker().wake_by_ref();
        }
        ended
    }
}
