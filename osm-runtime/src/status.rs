//! What the process says about itself to operators: the page `/status`.
//!
//! Owns the gathering of what is spread over the process. Invariants: answering costs as much as reading what is there,
//! for any mesh; no secret is shown, and no workload named, since everybody in the cluster can ask.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use osm_core::{
    certificate::{TrustBundle, Validity},
    status::{Life, Replica, RootInUse, STATUS_PAGE},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{health::Health, watch::WatchMetrics};

/// Most roots that are listed: two are the most any rotation needs.
const MOST_ROOTS: usize = 16;
/// Longest reason, in bytes, that is passed on.
const LONGEST_REASON: usize = 512;

/// Adds to the page what only one component knows.
type Section = Box<dyn Fn(&mut Replica) + Send + Sync>;

/// How this process stands. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Status {
    shared: Arc<Shared>,
}

struct Shared {
    component: &'static str,
    version: &'static str,
    pod: String,
    started: Instant,
    health: Health,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    watches: Option<WatchMetrics>,
    roots: Option<watch::Receiver<TrustBundle>>,
    leader: Option<watch::Receiver<bool>>,
    certificates: BTreeMap<&'static str, Validity>,
    sections: Vec<Section>,
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({})", self.shared.pod)
    }
}

impl Status {
    /// Of a component in a pod, of which nothing but its health is known yet.
    pub fn new(component: &'static str, version: &'static str, pod: &str, health: &Health) -> Self {
        Self {
            shared: Arc::new(Shared {
                component,
                version,
                pod: pod.to_owned(),
                started: Instant::now(),
                health: health.clone(),
                known: Mutex::default(),
            }),
        }
    }

    /// Shows when each of these watches last heard from the API server.
    pub fn follow_watches(&self, watches: &WatchMetrics) {
        self.shared.known.lock().watches = Some(watches.clone());
    }

    /// Shows which roots are trusted.
    pub fn follow_roots(&self, roots: watch::Receiver<TrustBundle>) {
        self.shared.known.lock().roots = Some(roots);
    }

    /// Shows whether this replica holds its component's Lease.
    pub fn follow_leader(&self, leader: watch::Receiver<bool>) {
        self.shared.known.lock().leader = Some(leader);
    }

    /// Shows the life of a certificate the process presents, in place of an earlier one of that name.
    pub fn certificate(&self, name: &'static str, validity: Validity) {
        self.shared.known.lock().certificates.insert(name, validity);
    }

    /// Has `section` add to the page. It must answer at once, and must not use this `Status`.
    pub fn describe(&self, section: impl Fn(&mut Replica) + Send + Sync + 'static) {
        self.shared.known.lock().sections.push(Box::new(section));
    }

    /// The page of this moment.
    pub fn page(&self) -> Replica {
        let shared = &self.shared;
        let short = |mut reason: String| {
            reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
            reason
        };
        let not_ready = shared.health.not_ready().into_iter();
        let stuck = shared.health.stuck().into_iter();
        let known = shared.known.lock();
        let roots = known.roots.as_ref().map(|roots| {
            let bundle = roots.borrow();
            bundle
                .roots()
                .iter()
                .take(MOST_ROOTS)
                .map(RootInUse::from)
                .collect()
        });
        let silences = known
            .watches
            .as_ref()
            .map(WatchMetrics::silences)
            .unwrap_or_default();
        let mut page = Replica {
            component: shared.component.to_owned(),
            pod: shared.pod.clone(),
            version: shared.version.to_owned(),
            clock_millis: Timestamp::now().as_millisecond(),
            up_seconds: shared.started.elapsed().as_secs(),
            not_ready: not_ready
                .map(|(name, reason)| (name.to_owned(), short(reason)))
                .collect(),
            stuck: stuck
                .map(|(name, silence)| (name.to_owned(), silence.as_secs()))
                .collect(),
            leader: known.leader.as_ref().is_some_and(|leader| *leader.borrow()),
            roots: roots.unwrap_or_default(),
            certificates: known
                .certificates
                .iter()
                .map(|(name, validity)| ((*name).to_owned(), Life::from(*validity)))
                .collect(),
            watches: silences
                .into_iter()
                .map(|(kind, silence)| (kind.to_owned(), silence.as_ref().map(Duration::as_secs)))
                .collect(),
            ..Replica::default()
        };
        for section in &known.sections {
            section(&mut page);
        }
        page
    }

    /// The page, to be served by [`Admin`](crate::admin::Admin).
    pub fn router(self) -> Router {
        Router::new()
            .route(
                STATUS_PAGE,
                get(async |State(status): State<Self>| Json(status.page())),
            )
            .with_state(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::{Authority, Issuer, KeyKind};

    #[test]
    fn the_page_follows_what_changes() {
        let health = Health::new();
        let status = Status::new("osm-controller", "v2", "osm-controller-1", &health);
        let caches = health.condition("caches");
        caches.set_not_ready("x".repeat(2 * LONGEST_REASON));
        let page = status.page();
        assert_eq!(
            (page.component.as_str(), page.pod.as_str()),
            ("osm-controller", "osm-controller-1")
        );
        assert_eq!(
            page.not_ready["caches"].len(),
            LONGEST_REASON,
            "reasons are bounded"
        );
        assert!(!page.leader && page.roots.is_empty() && page.certificates.is_empty());

        caches.set_ready();
        let root = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
        let issuer = Issuer::from_authority(Authority::load(&root, Timestamp::now()).unwrap());
        status.follow_roots(issuer.watch_roots());
        let (lead, leader) = watch::channel(true);
        status.follow_leader(leader);
        let now = Timestamp::now();
        let validity = |seconds| Validity::starting(now, Duration::from_secs(seconds), None);
        status.certificate("ads", validity(600));
        status.certificate("ads", validity(1_200));
        status.describe(|page| page.uninjected = Some(3));
        let page = status.page();
        assert!(page.not_ready.is_empty() && page.leader);
        assert_eq!(page.roots[0].fingerprint, issuer.roots().roots()[0].fingerprint());
        assert_eq!(page.roots[0].fingerprint.len(), 64);
        assert_eq!(
            page.certificates["ads"].lifetime_seconds, 1_200,
            "the newer one is shown"
        );
        assert_eq!(page.uninjected, Some(3));
        lead.send_replace(false);
        assert!(!status.page().leader);
    }

    #[tokio::test]
    async fn no_key_is_on_the_page() {
        let root = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
        let issuer = Issuer::from_authority(Authority::load(&root, Timestamp::now()).unwrap());
        let status = Status::new("osm-injector", "v2", "osm-injector-1", &Health::new());
        status.follow_roots(issuer.watch_roots());
        let text = serde_json::to_string(&status.page()).unwrap();
        for secret in ["PRIVATE", "BEGIN", "key"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}
