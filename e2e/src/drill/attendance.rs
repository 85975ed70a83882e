//! Which proxy is served by which controller, all the time, as the controllers' own debug pages say.
//!
//! Owns one thread for each controller, in that controller's network, which asks ten times a second. Invariant: a proxy
//! counts as served at a moment only if a controller said so in answer to a question asked at that moment; one that does
//! not answer serves nobody. Gaps are therefore measured a tenth of a second too long rather than too short.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::node::{self, PodProcess};

/// Between two questions to one controller.
const PERIOD: Duration = Duration::from_millis(100);
/// How long an answer may take until the controller counts as silent.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks for new controllers.
const SCAN: Duration = Duration::from_millis(200);
/// The debug port.
const DEBUG: u16 = 9092;

/// The last that was heard of a proxy.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The controller that serves it.
    pub controller: PodProcess,
    /// Since when, as the controller says.
    pub since: String,
    /// When that was asked.
    pub at: Instant,
}

/// A time in which nobody served a proxy.
#[derive(Clone, Debug)]
pub struct Gap {
    /// The proxy.
    pub proxy: String,
    /// How long it was.
    pub length: Duration,
    /// When it was over.
    pub ended: Instant,
}

#[derive(Default)]
struct State {
    seen: BTreeMap<String, Sighting>,
    gaps: Vec<Gap>,
    /// All streams ever seen, by the proxy and the time they began.
    streams: BTreeSet<(String, String)>,
}

/// Watches until dropped.
pub struct Attendance {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Attendance {
    /// Begins to watch the proxies of a namespace.
    pub fn start(namespace: &str) -> Self {
        let attendance = Self {
            state: Arc::default(),
            stop: Arc::default(),
        };
        let (state, stop) = (Arc::clone(&attendance.state), Arc::clone(&attendance.stop));
        let suffix = format!(".{namespace}");
        thread::spawn(move || {
            let mut watched = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                for controller in node::processes("osm-controller").unwrap_or_default() {
                    if watched.insert(controller.clone()) {
                        let (state, stop, suffix) = (Arc::clone(&state), Arc::clone(&stop), suffix.clone());
                        thread::spawn(move || watch(&controller, &suffix, &state, &stop));
                    }
                }
                thread::sleep(SCAN);
            }
        });
        attendance
    }

    /// Who serves each proxy now.
    pub fn now(&self) -> BTreeMap<String, Sighting> {
        let mut seen = lock(&self.state).seen.clone();
        seen.retain(|_, sighting| sighting.at.elapsed() < PERIOD + PATIENCE);
        seen
    }

    /// How many proxies have another stream than before, or none.
    pub fn moved(&self, before: &BTreeMap<String, Sighting>) -> usize {
        let now = self.now();
        let stayed = |proxy: &String, earlier: &Sighting| {
            now.get(proxy)
                .is_some_and(|now| now.since == earlier.since && now.controller == earlier.controller)
        };
        before
            .iter()
            .filter(|(proxy, earlier)| !stayed(proxy, earlier))
            .count()
    }

    /// The proxies a controller serves now.
    pub fn of(&self, controller: &PodProcess) -> BTreeSet<String> {
        let served =
            |(proxy, sighting): (String, Sighting)| (sighting.controller == *controller).then_some(proxy);
        self.now().into_iter().filter_map(served).collect()
    }

    /// Waits until each of the proxies is served by another than `lost`, and says how long after `since` each was.
    pub async fn served_again(
        &self,
        proxies: &BTreeSet<String>,
        lost: &PodProcess,
        since: Instant,
        at_most: Duration,
    ) -> Result<Vec<Duration>> {
        let mut served = BTreeMap::new();
        while served.len() < proxies.len() {
            for (proxy, sighting) in &lock(&self.state).seen {
                if proxies.contains(proxy) && sighting.controller != *lost && sighting.at > since {
                    served.entry(proxy.clone()).or_insert(sighting.at - since);
                }
            }
            if since.elapsed() > at_most {
                bail!(
                    "{} of {} proxies were not served again within {at_most:?}",
                    proxies.len() - served.len(),
                    proxies.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(served.into_values().collect())
    }

    /// The gaps that ended after `since`, the longest first.
    pub fn gaps(&self, since: Instant) -> Vec<Gap> {
        let mut gaps: Vec<Gap> = lock(&self.state)
            .gaps
            .iter()
            .filter(|gap| gap.ended > since)
            .cloned()
            .collect();
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.length));
        gaps
    }

    /// The longest time any proxy was served by nobody, of gaps that ended after `since`.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        self.gaps(since).first().map_or(Duration::ZERO, |gap| gap.length)
    }

    /// How many streams have been seen.
    pub fn streams(&self) -> BTreeSet<(String, String)> {
        lock(&self.state).streams.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(controller: &PodProcess, suffix: &str, state: &Mutex<State>, stop: &AtomicBool) {
    if node::join_network(controller.pid).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) && controller.is_alive() {
        let asked = Instant::now();
        if let Ok((200, body)) = node::get(DEBUG, "/debug/proxies", PATIENCE)
            && let Ok(rows) = serde_json::from_str::<Vec<Value>>(&body)
        {
            let mut state = lock(state);
            for row in rows {
                let text = |name: &str| row[name].as_str().map(str::to_owned);
                if let (Some(proxy), Some(identity), Some(since)) =
                    (text("uuid"), text("identity"), text("connected"))
                    && identity.ends_with(suffix)
                {
                    state.saw(proxy, controller, since, asked);
                }
            }
        }
        thread::sleep(PERIOD.saturating_sub(asked.elapsed()));
    }
}

impl State {
    fn saw(&mut self, proxy: String, controller: &PodProcess, since: String, at: Instant) {
        self.streams.insert((proxy.clone(), since.clone()));
        let sighting = Sighting {
            controller: controller.clone(),
            since,
            at,
        };
        let Some(before) = self.seen.get_mut(&proxy) else {
            self.seen.insert(proxy, sighting);
            return;
        };
        // While a proxy moves, the controller it left may name it once more, late.
        if at < before.at || (before.controller != *controller && sighting.since < before.since) {
            return;
        }
        let length = at - before.at;
        // On the same stream it was the controller that was silent, be it only because the machine was busy.
        let excused = if before.since == sighting.since {
            10 * PERIOD
        } else {
            3 * PERIOD
        };
        *before = sighting;
        if length > excused {
            self.gaps.push(Gap {
                proxy,
                length,
                ended: at,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(pid: i32) -> PodProcess {
        PodProcess {
            pid,
            program: "osm-controller".into(),
            pod: format!("pod-{pid}"),
            uid: String::new(),
        }
    }

    #[test]
    fn a_gap_is_from_the_last_sighting_to_the_next_wherever_it_is() {
        let (mut state, begun) = (State::default(), Instant::now());
        let mut saw = |pid, since: &str, at: u64| {
            let at = begun + Duration::from_millis(at);
            state.saw("proxy".into(), &controller(pid), since.into(), at);
        };
        saw(1, "a", 0);
        saw(1, "a", 100);
        // A late word of the controller it left counts for nothing.
        saw(2, "b", 1600);
        saw(1, "a", 1650);
        saw(2, "b", 1700);
        assert_eq!(state.gaps.len(), 1);
        assert_eq!(state.gaps[0].length, Duration::from_millis(1500));
        assert_eq!(state.seen["proxy"].controller, controller(2));
        assert_eq!(state.streams.len(), 2);
    }
}
