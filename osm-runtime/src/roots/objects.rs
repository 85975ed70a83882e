//! The MeshRootCertificates of the mesh, as they are now.
//!
//! Invariant: an object that cannot be read, or can no longer, keeps its last readable state and is named as a problem.

use kube::Client;
use osm_core::{
    api::MeshRootCertificate,
    certificate::rotation::{Home, Objects, RootObject},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    health::Condition,
    watch::{Event, Watch, WatchMetrics},
};

/// Longest problem that is kept.
const MAX_PROBLEM: usize = 512;

type Read = (String, Result<RootObject, String>);

/// Follows the objects in the control plane's namespace until `stop`. `known` is `None` until all were listed once. A
/// cluster that does not know the kind has no objects.
pub async fn follow(
    client: Client,
    home: Home,
    known: watch::Sender<Option<Objects>>,
    synced: Condition,
    metrics: WatchMetrics,
    stop: CancellationToken,
) {
    let (sink, mut changes) = mpsc::channel(16);
    let namespace = home.namespace.clone();
    let watch =
        Watch::<MeshRootCertificate>::namespaced(client, "meshrootcertificates", &namespace).optional();
    let convert = move |object: MeshRootCertificate| -> Read {
        let name = object.metadata.name.clone().unwrap_or_default();
        (name, RootObject::from(&object, &home))
    };
    let learn = async {
        while let Some(event) = changes.recv().await {
            known.send_if_modified(|known| {
                let mut next = known.clone().unwrap_or_default();
                apply(&mut next, event);
                let changed = known.as_ref() != Some(&next);
                *known = Some(next);
                changed
            });
        }
    };
    tokio::join!(
        watch.run(convert, |event| event, sink, synced, metrics, stop),
        learn
    );
}

fn apply(objects: &mut Objects, event: Event<Read>) {
    match event {
        Event::Upsert(read) => learn(objects, read),
        Event::Remove(key) => {
            objects.readable.remove(&key.name);
            objects.problems.remove(&key.name);
        }
        Event::Malformed(malformed) => learn(objects, (malformed.key.name, Err(malformed.error))),
        Event::Reset {
            objects: all,
            malformed,
        } => {
            let malformed = malformed.into_iter().map(|bad| (bad.key.name, Err(bad.error)));
            let all: Vec<Read> = all.into_iter().chain(malformed).collect();
            objects
                .readable
                .retain(|name, _| all.iter().any(|(known, _)| known == name));
            objects.problems.clear();
            all.into_iter().for_each(|read| learn(objects, read));
        }
    }
}

fn learn(objects: &mut Objects, (name, read): Read) {
    match read {
        Ok(object) => {
            objects.problems.remove(&name);
            objects.readable.insert(name, object);
        }
        Err(mut problem) => {
            tracing::warn!(
                object = name,
                problem,
                "a MeshRootCertificate cannot be read; its last state stays in force"
            );
            problem.truncate(problem.floor_char_boundary(MAX_PROBLEM));
            objects.problems.insert(name, problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use osm_core::certificate::rotation::{Role, Source};

    use super::*;
    use crate::watch::{Malformed, ObjectKey};

    fn read(name: &str, role: Role) -> Read {
        let object = RootObject {
            role,
            source: Source::Tresor { secret: name.into() },
            created: None,
            generation: 1,
            reports: Default::default(),
        };
        (name.into(), Ok(object))
    }

    #[test]
    fn what_cannot_be_read_any_more_stays_as_it_was() {
        let mut objects = Objects::default();
        apply(
            &mut objects,
            Event::Reset {
                objects: vec![read("a", Role::Active)],
                malformed: vec![],
            },
        );
        let key = |name: &str| ObjectKey {
            namespace: "osm-system".into(),
            name: name.into(),
        };
        let malformed = |name| Malformed {
            key: key(name),
            error: "é".repeat(600),
        };
        apply(&mut objects, Event::Malformed(malformed("a")));
        assert_eq!(objects.readable["a"].role, Role::Active);
        assert!(objects.problems["a"].len() <= MAX_PROBLEM);
        apply(
            &mut objects,
            Event::Reset {
                objects: vec![],
                malformed: vec![malformed("a")],
            },
        );
        assert_eq!(
            objects.readable["a"].role,
            Role::Active,
            "also when all were listed again"
        );
        apply(&mut objects, Event::Upsert(read("a", Role::Passive)));
        assert!(objects.problems.is_empty());
        apply(&mut objects, Event::Remove(key("a")));
        assert_eq!(objects, Objects::default());
    }
}
