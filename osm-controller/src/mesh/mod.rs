//! The mesh as this replica knows it: what the engine published, and who is to be woken.
//!
//! Owns the published snapshot and the wake-ups. Invariants: a snapshot is published before anyone is woken for it;
//! nothing is published before every kind of object has been listed once, so that no proxy ever sees half a world.

mod batch;
mod thread;
mod watches;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::{ArcSwap, ArcSwapOption};
use osm_core::{
    facts::mesh_config::ControlSettings,
    resource::{ClassId, Snapshot},
};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use thread::{EngineMetrics, Input, Inputs, start};
pub use watches::watch_all;

/// What the engine published. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwapOption<Snapshot>,
    revision: watch::Sender<u64>,
    classes: Mutex<BTreeMap<ClassId, watch::Sender<()>>>,
    control: watch::Sender<ControlSettings>,
    problems: ArcSwap<Vec<osm_core::facts::Diagnostic>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            snapshot: ArcSwapOption::empty(),
            revision: watch::channel(0).0,
            classes: Mutex::default(),
            control: watch::channel(ControlSettings::default()).0,
            problems: ArcSwap::default(),
        }
    }
}

impl Mesh {
    /// A mesh of which nothing has been published.
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest snapshot; `None` before the first.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shared.snapshot.load_full()
    }

    /// Changes with every publication.
    pub fn publications(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// Changes when the resources or the membership of a class did.
    pub fn class(&self, class: ClassId) -> watch::Receiver<()> {
        let mut classes = self.shared.classes.lock();
        classes
            .entry(class)
            .or_insert_with(|| watch::channel(()).0)
            .subscribe()
    }

    /// What MeshConfig says about the control plane itself.
    pub fn control(&self) -> watch::Receiver<ControlSettings> {
        self.shared.control.subscribe()
    }

    /// What is wrong with objects now.
    pub fn problems(&self) -> Arc<Vec<osm_core::facts::Diagnostic>> {
        self.shared.problems.load_full()
    }

    /// Publishes a snapshot and wakes the streams of `classes`.
    pub fn publish(&self, snapshot: Arc<Snapshot>, classes: &[ClassId]) {
        let revision = snapshot.revision;
        self.shared.snapshot.store(Some(snapshot));
        self.shared.revision.send_replace(revision);
        let mut wakers = self.shared.classes.lock();
        for class in classes {
            if let Some(waker) = wakers.get(class) {
                if waker.receiver_count() == 0 {
                    wakers.remove(class);
                } else {
                    waker.send_replace(());
                }
            }
        }
    }

    fn set_control(&self, control: &ControlSettings) {
        self.shared.control.send_if_modified(|now| {
            let changed = now != control;
            if changed {
                now.clone_from(control);
            }
            changed
        });
    }

    fn set_problems(&self, problems: Vec<osm_core::facts::Diagnostic>) {
        self.shared.problems.store(Arc::new(problems));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_classes_that_changed_are_woken() {
        let mesh = Mesh::new();
        let (mut one, mut two) = (mesh.class(ClassId(1)), mesh.class(ClassId(2)));
        let mut any = mesh.publications();
        assert!(mesh.snapshot().is_none());
        let mut snapshot = Snapshot::default();
        snapshot.revision = 1;
        mesh.publish(Arc::new(snapshot), &[ClassId(2), ClassId(3)]);
        assert!(!one.has_changed().unwrap());
        assert!(two.has_changed().unwrap());
        assert!(any.has_changed().unwrap());
        one.mark_unchanged();
        two.mark_unchanged();
        any.mark_unchanged();
        drop(two);
        mesh.publish(Arc::default(), &[ClassId(2)]);
        assert_eq!(
            mesh.shared.classes.lock().len(),
            1,
            "wakers nobody listens to are forgotten"
        );
    }
}
