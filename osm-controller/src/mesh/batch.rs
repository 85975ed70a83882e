//! How long changes are gathered before the engine runs.
//!
//! A change after a quiet time is worked on almost at once; what a deployment rolls out together is gathered; under
//! load batches grow with what they cost, so that the engine never takes more than about half of the time.

use std::time::Duration;

use osm_core::{facts::FactKind, mesh::Event};

/// Gathering time of changes that only move endpoints.
const ENDPOINTS: Duration = Duration::from_millis(10);
/// Gathering time of changes of structure: policies, Services, settings.
const STRUCTURE: Duration = Duration::from_millis(50);
/// The longest gathering time.
const LONGEST: Duration = Duration::from_secs(1);

/// Whether an event can change more than endpoints and membership of pods.
pub(super) fn is_structural(event: &Event) -> bool {
    let kind = match event {
        Event::Upsert(fact) => fact.key().kind,
        Event::Remove(key) => key.kind,
        // Certificates are awaited by a proxy that is starting.
        Event::Certificate { .. } => return false,
        Event::Reset { .. } | Event::Malformed(_) | Event::Roots(_) => return true,
    };
    !matches!(kind, FactKind::EndpointSlice | FactKind::Pod)
}

/// The gathering time of the next batch.
#[derive(Debug, Default)]
pub(super) struct Pace {
    cost: Duration,
}

impl Pace {
    /// Takes note of what a batch cost.
    pub(super) fn spent(&mut self, cost: Duration) {
        self.cost = cost;
    }

    /// How long to gather from the first event on.
    pub(super) fn window(&self, structural: bool) -> Duration {
        let least = if structural { STRUCTURE } else { ENDPOINTS };
        least.max(self.cost).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use osm_core::facts::FactKey;

    use super::*;

    #[test]
    fn windows_grow_with_the_cost_and_are_bounded() {
        let mut pace = Pace::default();
        assert_eq!(pace.window(false), ENDPOINTS);
        assert_eq!(pace.window(true), STRUCTURE);
        pace.spent(Duration::from_millis(300));
        assert_eq!(pace.window(false), Duration::from_millis(300));
        pace.spent(Duration::from_secs(30));
        assert_eq!(pace.window(true), LONGEST);
    }

    #[test]
    fn endpoints_do_not_wait_for_structure() {
        let removed = |kind| Event::Remove(FactKey::new(kind, "shop", "x"));
        assert!(!is_structural(&removed(FactKind::EndpointSlice)));
        assert!(!is_structural(&removed(FactKind::Pod)));
        assert!(is_structural(&removed(FactKind::Service)));
        assert!(is_structural(&Event::Roots("".into())));
    }
}
