//! What this replica reports of the roots, in the objects' status.
//!
//! Owns one entry in each object, under the replica's own name: a merge patch that touches nothing else, so replicas do
//! not fight. Invariants: nothing is written when nothing changed, but for a sign of life, which is frequent only while
//! roots are being rotated; entries of replicas that have long been silent are taken out by whoever writes next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use osm_core::{
    api::MeshRootCertificate,
    certificate::rotation::{Objects, Report, RootObject, progress::Count},
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::Standing;
use crate::{
    backoff::jittered,
    client::{CALL, within},
};

/// How often the state is looked at.
const LOOK: Duration = Duration::from_secs(4);
/// Time between signs of life while more than one root is trusted.
const ROTATING: Duration = Duration::from_secs(20);
/// Time between signs of life otherwise.
const STEADY: Duration = Duration::from_secs(600);
/// After how long an entry is another replica's that is gone.
const GONE: SignedDuration = SignedDuration::from_secs(1_800);

/// What a component knows of the use of roots, beside the certificates in its own hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sidecars connected here, and how many of them do not have the present roots and certificates.
    pub proxies: Option<Count>,
    /// Bootstrap Secrets, and how many of them do not hold the present roots and a certificate of the present signer.
    pub secrets: Option<Count>,
}

/// Who reports.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The component.
    pub component: &'static str,
    /// The pod.
    pub replica: String,
    /// The control plane's namespace.
    pub namespace: String,
}

/// What was written of an object, and since when its state lasts.
struct Written {
    report: Report,
    since: Instant,
    at: Instant,
}

/// Reports until `stop`. `usage` is asked while roots are being rotated, every few seconds.
pub async fn report<F: Future<Output = Usage>>(
    client: Client,
    reporter: Reporter,
    objects: watch::Receiver<Option<Objects>>,
    standing: watch::Receiver<Standing>,
    usage: impl Fn() -> F,
    stop: CancellationToken,
) {
    let api = Api::<MeshRootCertificate>::namespaced(client, &reporter.namespace);
    let mut written: BTreeMap<String, Written> = BTreeMap::new();
    let run = async {
        loop {
            sleep(jittered(LOOK, 0.2)).await;
            let known = objects.borrow().clone().unwrap_or_default();
            let current = standing.borrow().clone();
            let rotating = current.plan.trusts.len() > 1;
            let used = if rotating { usage().await } else { Usage::default() };
            let names: BTreeSet<&String> = known.readable.keys().chain(known.problems.keys()).collect();
            written.retain(|name, _| names.contains(name));
            for name in names {
                let (object, problem) = (known.readable.get(name), known.problems.get(name));
                let report = describe(&reporter, name, object, problem, &current, used);
                let Some(report) = due(&mut written, name, report, rotating) else {
                    continue;
                };
                let patch = patch(&reporter, &report, object.map(|object| &object.reports));
                let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
                match within(CALL, api.patch_status(name, &params, &patch)).await {
                    Ok(_) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => {
                        // It is written again at the next look.
                        if let Some(entry) = written.get_mut(name) {
                            entry.report.time.clear();
                        }
                        tracing::warn!(object = name, %error, "the status of a MeshRootCertificate was not written");
                    }
                }
            }
        }
    };
    tokio::select! { () = run => {}, () = stop.cancelled() => {} }
}

/// The state of one object's root here, without times.
fn describe(
    reporter: &Reporter,
    name: &str,
    object: Option<&RootObject>,
    problem: Option<&String>,
    standing: &Standing,
    used: Usage,
) -> Report {
    let trusted = standing.plan.trusts.iter().zip(&standing.members);
    let mut own = trusted.filter(|(member, _)| member.object.as_deref() == Some(name));
    let found = own.next();
    // What another object's contradiction keeps from being in force concerns all.
    let problem = match (problem, &standing.problem) {
        (Some(problem), _) => problem.clone(),
        (None, Some(problem)) => problem.to_string(),
        (None, None) => String::new(),
    };
    let root = found.and_then(|(_, member)| member.roots().roots().first());
    Report {
        component: reporter.component.to_owned(),
        generation: standing.generations.get(name).copied().unwrap_or(0),
        role: object.map(|object| object.role).filter(|_| problem.is_empty()),
        fingerprint: found
            .map(|(_, member)| member.fingerprint().to_string())
            .unwrap_or_default(),
        not_after: root
            .map(|root| root.validity().not_after.to_string())
            .unwrap_or_default(),
        trusted: found.is_some(),
        signing: found.is_some() && standing.plan.signs.object.as_deref() == Some(name),
        certificates: found.map_or(0, |(_, member)| member.leaves() as u64),
        proxies: used.proxies.filter(|_| found.is_some()),
        secrets: used.secrets.filter(|_| found.is_some()),
        problem,
        ..Report::default()
    }
}

/// The report as it is to be written; `None` when what was written last still says it.
fn due(
    written: &mut BTreeMap<String, Written>,
    name: &str,
    mut report: Report,
    rotating: bool,
) -> Option<Report> {
    let now = Instant::now();
    let period = if rotating && report.trusted {
        ROTATING
    } else {
        STEADY
    };
    let since = match written.get(name) {
        Some(last) if last.report.state() == report.state() => {
            let fresh = now.duration_since(last.at) < period.mul_f64(0.9);
            if fresh && !last.report.time.is_empty() {
                return None;
            }
            last.since
        }
        _ => now,
    };
    report.settled_seconds = now.duration_since(since).as_secs();
    report.time = Timestamp::now().to_string();
    let entry = Written {
        report: report.clone(),
        since,
        at: now,
    };
    written.insert(name.to_owned(), entry);
    Some(report)
}

fn patch(reporter: &Reporter, report: &Report, others: Option<&BTreeMap<String, Report>>) -> Value {
    let now = Timestamp::now();
    let gone = |report: &Report| {
        let said: Option<Timestamp> = report.time.parse().ok();
        said.is_none_or(|said| now.duration_since(said) > GONE)
    };
    let stale = |(name, report): &(&String, &Report)| **name != reporter.replica && gone(report);
    let others = others.into_iter().flatten().filter(stale);
    let mut replicas: Map<String, Value> = others.map(|(name, _)| (name.clone(), Value::Null)).collect();
    // A merge patch keeps what it does not name: fields that are left out must go.
    let mut entry = json!({
        "role": null, "fingerprint": null, "notAfter": null, "proxies": null, "secrets": null, "problem": null,
    });
    if let (Ok(Value::Object(fields)), Value::Object(entry)) = (serde_json::to_value(report), &mut entry) {
        entry.extend(fields);
    }
    replicas.insert(reporter.replica.clone(), entry);
    json!({ "status": { "replicas": replicas } })
}

#[cfg(test)]
mod tests {
    use osm_core::certificate::rotation::{Member as Planned, Plan, Role, Source};

    use super::*;
    use crate::issuer::{Authority, KeyKind, Member};

    fn member() -> Member {
        let root = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
        Member::from_authority(Authority::load(&root, Timestamp::now()).unwrap())
    }

    fn reporter() -> Reporter {
        Reporter {
            component: "osm-controller",
            replica: "c-1".into(),
            namespace: "osm-system".into(),
        }
    }

    fn object(role: Role) -> RootObject {
        RootObject {
            role,
            source: Source::Tresor { secret: "x".into() },
            created: None,
            generation: 3,
            reports: BTreeMap::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_twice_but_signs_of_life() {
        let planned = Planned {
            object: Some("new".into()),
            source: Source::Tresor { secret: "x".into() },
        };
        let mut standing = Standing {
            plan: Plan {
                signs: planned.clone(),
                trusts: vec![planned],
            },
            members: vec![member()],
            generations: [("new".to_owned(), 3)].into(),
            problem: None,
        };
        let mut written = BTreeMap::new();
        let describe = |standing: &Standing, behind| {
            let proxies = Some(Count { total: 5, behind });
            describe(
                &reporter(),
                "new",
                Some(&object(Role::Active)),
                None,
                standing,
                Usage {
                    proxies,
                    secrets: None,
                },
            )
        };
        let first = due(&mut written, "new", describe(&standing, 2), true).expect("it is new");
        assert_eq!((first.generation, first.signing, first.trusted), (3, true, true));
        assert_eq!(first.fingerprint.len(), 64);
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(
            due(&mut written, "new", describe(&standing, 1), true),
            None,
            "numbers come and go"
        );
        tokio::time::advance(Duration::from_secs(12)).await;
        let life = due(&mut written, "new", describe(&standing, 1), true).expect("a sign of life");
        assert_eq!(life.settled_seconds, 20);
        let done = due(&mut written, "new", describe(&standing, 0), true).expect("nobody is behind now");
        assert_eq!(done.settled_seconds, 0, "settling starts over");
        standing.problem = Some(super::super::RootsError::Plan(
            osm_core::certificate::rotation::PlanError::NoneActive,
        ));
        let problem = due(&mut written, "new", describe(&standing, 0), true).expect("a problem");
        assert!(problem.problem.contains("active") && problem.role.is_none());
    }

    #[test]
    fn entries_of_replicas_that_are_gone_are_taken_out() {
        let mut object = object(Role::Active);
        let at = |seconds: i64| Report {
            time: (Timestamp::now() - SignedDuration::from_secs(seconds)).to_string(),
            ..Report::default()
        };
        object.reports = [
            ("old".to_owned(), at(4_000)),
            ("new".to_owned(), at(60)),
            ("c-1".to_owned(), at(9_000)),
        ]
        .into();
        let patch = patch(&reporter(), &at(0), Some(&object.reports));
        let replicas = patch["status"]["replicas"].as_object().unwrap();
        assert_eq!(replicas.keys().collect::<Vec<_>>(), ["c-1", "old"]);
        assert!(replicas["old"].is_null());
        assert!(
            replicas["c-1"]["problem"].is_null(),
            "what was said before is taken back"
        );
    }
}
