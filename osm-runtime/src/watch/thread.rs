//! A thread for watches that are told of every write of the cluster.
//!
//! Owns a runtime of one thread, and a client whose connections live on it. Most events concern nobody, and what they cost
//! is not reading them but being woken for each. So the thread rests a moment whenever it has nothing left to do: what
//! arrives meanwhile is read in one go. Invariant: an event that comes after a quiet time is read at once; one that comes
//! after another waits for [`LULL`] at most, which is less than consumers gather changes for.

use std::{io, thread, time::Duration};

use kube::Client;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::client::ClientError;

/// How long the thread rests when it has nothing to do.
const LULL: Duration = Duration::from_millis(8);

/// Why there is no thread.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The system has no more threads or files to give.
    #[error("cannot start the thread of the watches")]
    Start(#[from] io::Error),
    /// There is no way to a cluster.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The thread. It ends when it is told to stop, and what runs on it with it.
pub struct WatchThread {
    /// What is spawned here runs on the thread.
    pub handle: Handle,
    /// A client for what runs on the thread.
    pub client: Client,
}

impl WatchThread {
    /// Starts the thread, which lives until `stop`; `connect` makes its client.
    ///
    /// # Errors
    /// [`ThreadError`].
    pub async fn start(
        connect: impl Future<Output = Result<Client, ClientError>> + Send + 'static,
        stop: CancellationToken,
    ) -> Result<Self, ThreadError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(|| thread::sleep(LULL))
            .build()?;
        let handle = runtime.handle().clone();
        let (made, client) = oneshot::channel();
        thread::Builder::new().name("watches".into()).spawn(move || {
            runtime.block_on(async {
                // Nobody waits any more if the process is leaving already.
                let _ = made.send(connect.await);
                stop.cancelled().await;
            });
            // A name that is being looked up does not keep the process.
            runtime.shutdown_background();
        })?;
        let gone = || io::Error::other("it ended at once");
        let client = client.await.map_err(|_| gone())??;
        Ok(Self { handle, client })
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn what_is_spawned_runs_on_the_thread_until_it_is_stopped() {
        let stop = CancellationToken::new();
        let connect = async {
            let unreachable = tower::service_fn(async |_: Request<Body>| {
                Err::<Response<Body>, _>(io::Error::other("unreachable"))
            });
            Ok(Client::new(unreachable, "default"))
        };
        let thread = WatchThread::start(connect, stop.clone()).await.unwrap();
        let name = thread
            .handle
            .spawn(async { thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap().as_deref(), Some("watches"));
        let forever = thread.handle.spawn(std::future::pending::<()>());
        stop.cancel();
        assert!(forever.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn a_client_that_cannot_be_made_is_said() {
        let connect = async { Err(ClientError::Config("no kubeconfig".into())) };
        let started = WatchThread::start(connect, CancellationToken::new()).await;
        let error = started.err().unwrap().to_string();
        assert!(error.contains("no kubeconfig"), "{error}");
    }
}
