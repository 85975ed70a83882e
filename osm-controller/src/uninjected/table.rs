//! What is known of the mesh's namespaces and of pods without a sidecar, and which of them are to be reported when.
//!
//! Decides nothing about who should have a sidecar. Invariant: a pod is due once, and not before its grace is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use osm_core::injection::{Bystander, Home, NamespaceView};
use osm_runtime::watch::{Event, ObjectKey};
use tokio::time::Instant;

/// How long a pod is without a sidecar before that is reported.
const GRACE: Duration = Duration::from_secs(60);

/// A namespace of the mesh.
#[derive(Debug)]
pub(super) struct Member {
    name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Member {
    pub(super) fn of(metadata: ObjectMeta) -> Self {
        Self {
            name: metadata.name.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
        }
    }
}

/// A pod, and what matters of it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) key: ObjectKey,
    pub(super) bystander: Option<Bystander>,
}

pub(super) enum Change {
    Namespace(Event<Member>),
    Pod(Event<Seen>),
}

/// What is known of namespaces and of pods without a sidecar.
#[derive(Debug, Default)]
pub(super) struct Table {
    members: BTreeMap<String, Member>,
    pods: BTreeMap<ObjectKey, Bystander>,
    /// Since when each pod that was found, by uid, has been without, and whether that was reported.
    since: BTreeMap<String, (Instant, bool)>,
}

impl Table {
    pub(super) fn take(&mut self, change: Change) {
        match change {
            Change::Namespace(Event::Reset { objects, .. }) => {
                self.members = objects
                    .into_iter()
                    .map(|member| (member.name.clone(), member))
                    .collect();
            }
            Change::Namespace(Event::Upsert(member)) => {
                self.members.insert(member.name.clone(), member);
            }
            Change::Namespace(Event::Remove(key)) => {
                self.members.remove(&key.name);
            }
            Change::Pod(Event::Reset { objects, .. }) => {
                let pods = objects.into_iter();
                self.pods = pods
                    .filter_map(|seen| Some((seen.key, seen.bystander?)))
                    .collect();
            }
            Change::Pod(Event::Upsert(Seen {
                key,
                bystander: Some(bystander),
            })) => {
                self.pods.insert(key, bystander);
            }
            Change::Pod(Event::Upsert(Seen { key, .. }) | Event::Remove(key)) => {
                self.pods.remove(&key);
            }
            Change::Namespace(Event::Malformed(_)) | Change::Pod(Event::Malformed(_)) => {}
        }
    }

    /// The pods that should have a sidecar, by namespace and name, with why.
    pub(super) fn find(&self, home: Home<'_>) -> Vec<(Bystander, String)> {
        let found = |bystander: &Bystander| {
            let namespace = self
                .members
                .get(&bystander.namespace)
                .map(|member| NamespaceView {
                    name: &member.name,
                    labels: &member.labels,
                    annotations: &member.annotations,
                });
            Some((bystander.clone(), bystander.lacks_sidecar(namespace, home)?))
        };
        self.pods.values().filter_map(found).collect()
    }

    /// Those of `found` that are to be reported now, each once.
    pub(super) fn due<'a>(
        &mut self,
        found: &'a [(Bystander, String)],
        now: Instant,
    ) -> Vec<&'a (Bystander, String)> {
        let there: BTreeSet<&str> = found
            .iter()
            .map(|(bystander, _)| bystander.uid.as_str())
            .collect();
        self.since.retain(|uid, _| there.contains(uid.as_str()));
        let mut due = Vec::new();
        for each in found {
            let (since, reported) = self.since.entry(each.0.uid.clone()).or_insert((now, false));
            if !*reported && now.duration_since(*since) >= GRACE {
                *reported = true;
                due.push(each);
            }
        }
        due
    }

    /// Whether a pod's grace is running.
    pub(super) fn waits(&self) -> bool {
        self.since.values().any(|(_, reported)| !reported)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    const HOME: Home<'_> = Home {
        mesh_name: "osm",
        control_plane_namespace: "osm-system",
    };

    fn pod(namespace: &str, name: &str, uid: &str) -> Change {
        let pod: Value = json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}, "spec": {"containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let key = ObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let bystander = Bystander::of(&pod);
        Change::Pod(Event::Upsert(Seen { key, bystander }))
    }

    fn member(name: &str) -> Change {
        let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        Change::Namespace(Event::Upsert(Member {
            name: name.to_owned(),
            labels: pair("openservicemesh.io/monitored-by", "osm"),
            annotations: pair("openservicemesh.io/sidecar-injection", "enabled"),
        }))
    }

    fn names(table: &Table) -> Vec<String> {
        table
            .find(HOME)
            .into_iter()
            .map(|(bystander, _)| bystander.name)
            .collect()
    }

    #[test]
    fn pods_are_found_as_their_namespace_joins_and_leaves() {
        let mut table = Table::default();
        table.take(pod("shop", "till", "1"));
        table.take(pod("other", "till", "2"));
        assert!(names(&table).is_empty(), "nobody is in the mesh yet");
        table.take(member("shop"));
        assert_eq!(names(&table), ["till"]);
        table.take(pod("shop", "buyer", "3"));
        assert_eq!(names(&table), ["buyer", "till"]);
        let key = |namespace: &str, name: &str| ObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        table.take(Change::Pod(Event::Remove(key("shop", "till"))));
        assert_eq!(names(&table), ["buyer"]);
        table.take(Change::Namespace(Event::Remove(key("", "shop"))));
        assert!(names(&table).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_reported_once_and_not_at_once() {
        let mut table = Table::default();
        table.take(member("shop"));
        table.take(pod("shop", "till", "1"));
        let due = |table: &mut Table| {
            let found = table.find(HOME);
            table.due(&found, Instant::now()).len()
        };
        assert_eq!(due(&mut table), 0);
        assert!(table.waits());
        tokio::time::advance(GRACE).await;
        assert_eq!(due(&mut table), 1);
        assert_eq!(due(&mut table), 0, "once");
        assert!(!table.waits());
        // The same name again is another pod.
        table.take(pod("shop", "till", "2"));
        assert_eq!(due(&mut table), 0);
        tokio::time::advance(GRACE).await;
        assert_eq!(due(&mut table), 1);
    }
}
