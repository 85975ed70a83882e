use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kube::core::Status;
use parking_lot::Mutex;

use super::*;

/// A Lease in memory, with optimistic versions as the API server has them.
#[derive(Clone, Default)]
struct Memory {
    lease: Arc<Mutex<Option<Lease>>>,
}

#[derive(Clone)]
struct Line {
    memory: Memory,
    cut: Arc<AtomicBool>,
}

impl Line {
    /// Without an answer, as with a peer that is gone.
    async fn pass(&self) {
        if self.cut.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

impl Store for Line {
    async fn read(&self) -> Result<Option<Lease>, ClientError> {
        self.pass().await;
        let found = self.memory.lease.lock().clone();
        tokio::task::yield_now().await;
        Ok(found)
    }

    async fn write(&self, mut lease: Lease) -> Result<Lease, ClientError> {
        self.pass().await;
        let mut current = self.memory.lease.lock();
        let version = current
            .as_ref()
            .and_then(|lease| lease.metadata.resource_version.clone());
        if version != lease.metadata.resource_version {
            let status = Status {
                code: 409,
                reason: "Conflict".into(),
                ..Status::default()
            };
            return Err(ClientError::Kube(kube::Error::Api(Box::new(status))));
        }
        let next = version
            .and_then(|version| version.parse::<u64>().ok())
            .unwrap_or(0)
            + 1;
        lease.metadata.resource_version = Some(next.to_string());
        *current = Some(lease.clone());
        Ok(lease)
    }
}

struct Runner {
    leads: watch::Receiver<bool>,
    cut: Arc<AtomicBool>,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

fn start(memory: &Memory, name: usize) -> Runner {
    let (leader, leads) = watch::channel(false);
    let (cut, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let election = Election {
        duration: Duration::from_secs(3),
        period: Duration::from_millis(50),
        ..Election::new("lease", format!("pod-{name}"))
    };
    let store = Line {
        memory: memory.clone(),
        cut: cut.clone(),
    };
    let candidate = Candidate {
        store,
        election,
        leader,
        seen: None,
        renewed: Instant::now(),
    };
    Runner {
        leads,
        cut,
        done: tokio::spawn(candidate.run(stop.clone())),
        stop,
    }
}

fn leaders(runners: &[Runner]) -> Vec<usize> {
    (0..runners.len())
        .filter(|index| *runners[*index].leads.borrow())
        .collect()
}

#[tokio::test]
async fn one_leads_at_a_time_through_partitions_and_exits() {
    let memory = Memory::default();
    let mut runners: Vec<Runner> = (0..5).map(|name| start(&memory, name)).collect();
    let wait = |from: usize| async move { tokio::time::sleep(Duration::from_millis(from as u64)).await };
    wait(500).await;
    let first = leaders(&runners);
    assert_eq!(first.len(), 1);
    let first = first[0];

    // Cut off from the API server, the leader steps down before another takes over.
    runners[first].cut.store(true, Ordering::Relaxed);
    let mut second = None;
    for _ in 0..2_000 {
        wait(10).await;
        let now = leaders(&runners);
        assert!(now.len() <= 1, "{now:?}");
        second = now.into_iter().find(|index| *index != first);
        if second.is_some() {
            break;
        }
    }
    let second = second.expect("another took over");

    // Leaving gives the Lease back: the next one need not wait for it to lapse.
    let leaver = runners.remove(second);
    leaver.stop.cancel();
    leaver.done.await.unwrap();
    wait(1_000).await;
    assert_eq!(leaders(&runners).len(), 1);
    let transitions = memory
        .lease
        .lock()
        .as_ref()
        .unwrap()
        .spec
        .as_ref()
        .unwrap()
        .lease_transitions;
    assert_eq!(transitions, Some(3));
    runners.iter().for_each(|runner| runner.stop.cancel());
}
