//! Futures that run inside the task of whoever owns them, instead of in tasks of their own.
//!
//! Owns what was given to it until it ends. A connection of one or two streams is served by three parties that wait for
//! each other: the transport, the answer's body, the stream's logic. As three tasks they wake each other across cores at
//! every message; inside one task the wake-up that brings a message also handles and answers it. Invariant: a panic of
//! one of them ends that one only.
//!
//! Not for handlers that compute: they would run one after another.

use std::{
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt as _, Stream as _, stream::FuturesUnordered, task::AtomicWaker};
use parking_lot::Mutex;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where futures of a connection are run: inside its task, or as tasks of their own. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Tasks {
    /// The way into a [`Crew`]; none leads to the runtime.
    inside: Option<Arc<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    jobs: Mutex<Jobs>,
    owner: AtomicWaker,
}

#[derive(Default)]
struct Jobs {
    new: Vec<Job>,
    /// The crew is gone: nothing runs any more.
    over: bool,
}

impl Tasks {
    /// Runs a future until it ends; inside a connection's task, no longer than that lives.
    pub fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let Some(waiting) = &self.inside else {
            tokio::spawn(job);
            return;
        };
        let mut jobs = waiting.jobs.lock();
        if jobs.over {
            return;
        }
        jobs.new
            .push(Box::pin(AssertUnwindSafe(job).catch_unwind().map(drop)));
        drop(jobs);
        waiting.owner.wake();
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, job: F) {
        self.spawn(job);
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tasks")
    }
}

/// Futures that its owner runs.
#[derive(Default)]
pub(crate) struct Crew {
    waiting: Arc<Waiting>,
    running: FuturesUnordered<Job>,
}

impl Crew {
    /// The way in.
    pub(crate) fn tasks(&self) -> Tasks {
        Tasks {
            inside: Some(self.waiting.clone()),
        }
    }

    /// Runs all that can go on. Ready when there is nothing left to run.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.waiting.owner.register(context.waker());
        loop {
            self.running.extend(self.waiting.jobs.lock().new.drain(..));
            let polled = Pin::new(&mut self.running).poll_next(context);
            let more = !self.waiting.jobs.lock().new.is_empty();
            match polled {
                Poll::Ready(None) if !more => return Poll::Ready(()),
                Poll::Pending if !more => return Poll::Pending,
                _ => {}
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Jobs hold the way in: what was not begun would keep itself alive.
        let unbegun = {
            let mut jobs = self.waiting.jobs.lock();
            jobs.over = true;
            std::mem::take(&mut jobs.new)
        };
        drop(unbegun);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[tokio::test]
    async fn jobs_wake_each_other_bring_others_in_and_all_are_run_to_their_end() {
        let mut crew = Crew::default();
        let tasks = crew.tasks();
        let (asked, mut questions) = mpsc::channel::<oneshot::Sender<u8>>(1);
        let (done, mut results) = mpsc::channel(1);
        let inner = tasks.clone();
        tasks.spawn(async move {
            let (answer, answered) = oneshot::channel();
            inner.spawn(async move {
                let _ = done.send(answered.await.unwrap()).await;
            });
            asked.send(answer).await.unwrap();
        });
        tasks.spawn(async move { questions.recv().await.unwrap().send(7).unwrap() });
        poll_fn(|context| crew.poll(context)).await;
        assert_eq!(results.recv().await, Some(7));
    }

    #[tokio::test]
    async fn a_panic_ends_one_job_and_no_other() {
        let mut crew = Crew::default();
        let (done, result) = oneshot::channel();
        crew.tasks().spawn(async { panic!("a bug") });
        crew.tasks().spawn(async { done.send(1).unwrap() });
        poll_fn(|context| crew.poll(context)).await;
        assert_eq!(result.await, Ok(1));
    }

    #[tokio::test]
    async fn what_comes_in_wakes_the_owner() {
        let mut crew = Crew::default();
        let (tasks, (done, result)) = (crew.tasks(), oneshot::channel());
        tasks.spawn(std::future::pending());
        let owner = tokio::spawn(async move { poll_fn(|context| crew.poll(context)).await });
        tokio::task::yield_now().await;
        tasks.spawn(async { done.send(2).unwrap() });
        assert_eq!(result.await, Ok(2));
        owner.abort();
    }
}
