#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;

use super::{
    admission::{Change, Refusal, UNCHECKED, judge},
    progress::{Count, DELIVERED, Goal, Report, obstacles, reports},
    stage::{self, Stage, StageError},
    *,
};

const ROLES: [Role; 3] = [Role::Inactive, Role::Passive, Role::Active];

/// Three roots; `a` is the configured one, and the oldest.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn home() -> Home {
    Home {
        namespace: "osm-system".into(),
        trust_domain: TrustDomain::default(),
        configured: source("a"),
    }
}

fn source(name: &str) -> Source {
    Source::Tresor {
        secret: format!("root-{name}"),
    }
}

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().expect("valid")
}

fn object(name: &str, role: Role) -> MeshRootCertificate {
    let day = 1 + NAMES.iter().position(|known| *known == name).unwrap_or(7);
    serde_json::from_value(json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshRootCertificate",
        "metadata": {"name": name, "namespace": "osm-system", "generation": 1,
            "creationTimestamp": format!("2029-01-0{day}T00:00:00Z"), "annotations": {UNCHECKED: "true"}},
        "spec": {"role": role, "trustDomain": "cluster.local",
            "provider": {"tresor": {"ca": {"secretRef": {"name": format!("root-{name}"), "namespace": "osm-system"}}}}},
    }))
    .expect("an object")
}

fn read(name: &str, role: Role) -> RootObject {
    RootObject::from(&object(name, role), &home()).expect("readable")
}

fn objects(roles: &[(&str, Role)]) -> Objects {
    let readable = roles
        .iter()
        .map(|(name, role)| ((*name).to_owned(), read(name, *role)));
    Objects {
        readable: readable.collect(),
        problems: BTreeMap::new(),
    }
}

/// Every set of roles of three objects, absent ones included.
fn all_sets() -> Vec<Objects> {
    let options: Vec<Option<Role>> = ROLES.into_iter().map(Some).chain([None]).collect();
    let mut sets = Vec::new();
    for a in &options {
        for b in &options {
            for c in &options {
                let roles: Vec<_> = NAMES
                    .into_iter()
                    .zip([a, b, c])
                    .filter_map(|(name, role)| Some((name, (*role)?)))
                    .collect();
                sets.push(objects(&roles));
            }
        }
    }
    sets
}

fn plan_of(objects: &Objects) -> Result<Plan, PlanError> {
    plan(&home().configured, objects)
}

fn with(objects: &Objects, name: &str, role: Option<Role>) -> Objects {
    let mut changed = objects.clone();
    match role {
        Some(role) => drop(changed.readable.insert(name.to_owned(), read(name, role))),
        None => drop(changed.readable.remove(name)),
    }
    changed
}

fn verdict(objects: &Objects, name: &str, role: Option<Role>) -> Result<(), Refusal> {
    let old = objects.readable.get(name).map(|old| object(name, old.role));
    let new = role.map(|role| object(name, role));
    let change = match (&old, &new) {
        (Some(old), Some(new)) => Change::Update { old, new },
        (None, Some(new)) => Change::Create(new),
        (Some(old), None) => Change::Delete(old),
        (None, None) => return Ok(()),
    };
    judge(name, change, objects, &home(), now())
}

#[test]
fn what_the_roles_mean() {
    use Role::{Active, Inactive, Passive};
    let meaning = |roles: &[(&str, Role)]| match plan_of(&objects(roles)) {
        Ok(plan) => {
            let name = |member: &Member| member.object.clone().unwrap_or_else(|| "configured".into());
            let trusts: Vec<_> = plan.trusts.iter().map(name).collect();
            format!("{} of {}", name(&plan.signs), trusts.join("+"))
        }
        Err(PlanError::NoneActive) => "none".to_owned(),
        Err(PlanError::TooMany(_)) => "many".to_owned(),
    };
    for (roles, expected) in [
        (&[][..], "configured of configured"),
        (&[("b", Passive)], "configured of configured+b"),
        (&[("b", Inactive)], "configured of configured"),
        (&[("b", Active)], "b of b"),
        (&[("a", Active)], "a of a"),
        (&[("a", Active), ("b", Passive)], "a of a+b"),
        (&[("a", Active), ("b", Active)], "b of a+b"),
        (&[("a", Passive), ("b", Active)], "b of a+b"),
        (&[("a", Inactive), ("b", Active)], "b of b"),
        // An object speaks for the configured root: it is not implied any more.
        (&[("a", Passive)], "none"),
        (&[("a", Inactive), ("b", Passive)], "none"),
        (&[("b", Passive), ("c", Passive)], "none"),
        (&[("a", Active), ("b", Passive), ("c", Passive)], "many"),
    ] {
        assert_eq!(meaning(roles), expected, "{roles:?}");
    }
    let mut unclear = objects(&[("b", Passive)]);
    unclear.problems.insert("x".into(), "unreadable".into());
    assert_eq!(
        plan_of(&unclear),
        Err(PlanError::NoneActive),
        "the unreadable one may have been the active one"
    );
}

/// Replicas see a change at different times, and sidecars of all of them talk to each other.
#[test]
fn whatever_admission_lets_through_leaves_no_two_replicas_apart() {
    let mut accepted = 0;
    for before in all_sets() {
        for name in NAMES {
            for role in ROLES.into_iter().map(Some).chain([None]) {
                if verdict(&before, name, role).is_err() {
                    continue;
                }
                let after = with(&before, name, role);
                let (Ok(before), Ok(after)) = (plan_of(&before), plan_of(&after)) else {
                    assert!(
                        plan_of(&before).is_err(),
                        "{before:?} -> {name} {role:?} breaks what worked"
                    );
                    continue;
                };
                accepted += 1;
                for (signs, trusts) in [(&before, &after), (&after, &before), (&after, &after)] {
                    let trusted = trusts
                        .trusts
                        .iter()
                        .any(|member| member.source == signs.signs.source);
                    assert!(trusted, "{before:?} -> {after:?}");
                }
            }
        }
    }
    assert!(accepted > 50, "{accepted}");
}

/// From wherever a rotation was left, to wherever it is to go: each step is one that admission accepts.
#[test]
fn every_rotation_ends() {
    let mut finished = 0;
    for start in all_sets() {
        for target in NAMES {
            let mut at = start.clone();
            if plan_of(&at).is_err() || !at.readable.contains_key(target) {
                continue;
            }
            let mut roles = Vec::new();
            for _ in 0..8 {
                let (name, role) = match stage::next(target, &home().configured, &at) {
                    Ok(Stage::Describe) => ("a".to_owned(), Role::Active),
                    Ok(Stage::Assign { object, role, .. }) => (object, role),
                    Ok(Stage::Finish { .. }) => {
                        let plan = plan_of(&at).unwrap();
                        assert_eq!(
                            plan.trusts,
                            std::slice::from_ref(&plan.signs),
                            "{start:?} {roles:?}"
                        );
                        assert_eq!(plan.signs.object.as_deref(), Some(target));
                        finished += 1;
                        break;
                    }
                    Err(StageError::Busy(..)) => break,
                    Err(error) => panic!("{start:?} {roles:?}: {error}"),
                };
                let said = verdict(&at, &name, Some(role));
                assert_eq!(
                    said,
                    Ok(()),
                    "{start:?} -> {target}: {roles:?}, then {name} {role}"
                );
                at = with(&at, &name, Some(role));
                roles.push((name, role));
            }
        }
    }
    assert!(finished > 20, "{finished}");
}

#[test]
fn refusals_say_why() {
    use Role::{Active, Inactive, Passive};
    let steady = objects(&[("a", Active)]);
    assert!(matches!(
        verdict(&steady, "b", Some(Active)),
        Err(Refusal::RoleTaken(..))
    ));
    assert_eq!(
        verdict(&steady, "a", Some(Inactive)),
        Err(Refusal::Skipped(Active, Inactive))
    );
    assert_eq!(
        verdict(&steady, "a", Some(Passive)),
        Err(Refusal::Plan(PlanError::NoneActive))
    );
    assert_eq!(verdict(&objects(&[]), "b", Some(Active)), Err(Refusal::Abrupt));
    assert_eq!(
        verdict(&objects(&[("b", Passive)]), "b", Some(Active)),
        Err(Refusal::Abrupt)
    );
    assert_eq!(
        verdict(&objects(&[("b", Active)]), "b", None),
        Err(Refusal::Abrupt)
    );
    assert_eq!(
        verdict(&objects(&[("b", Active), ("c", Inactive)]), "c", None),
        Ok(())
    );
    let changed = |edit: fn(&mut MeshRootCertificate)| {
        let old = object("a", Active);
        let mut new = old.clone();
        edit(&mut new);
        judge(
            "a",
            Change::Update { old: &old, new: &new },
            &steady,
            &home(),
            now(),
        )
    };
    let to_other_secret = |new: &mut MeshRootCertificate| {
        let tresor = new.spec.provider.tresor.as_mut().expect("tresor");
        tresor.ca.secret_ref.name = "other".into();
    };
    assert_eq!(changed(to_other_secret), Err(Refusal::Immutable("spec.provider")));
    assert_eq!(
        changed(|new| new.spec.spiffe_enabled = true),
        Err(Refusal::Immutable("spec.spiffeEnabled"))
    );
    for (edit, part) in [
        (
            (|new| new.spec.trust_domain = String::new()) as fn(&mut MeshRootCertificate),
            "trustDomain is empty",
        ),
        (
            |new| new.spec.trust_domain = "other.example".into(),
            "not the mesh's, cluster.local",
        ),
        (|new| new.spec.provider.tresor = None, "exactly one of"),
        (
            |new| {
                let tresor = new.spec.provider.tresor.as_mut().expect("tresor");
                tresor.ca.secret_ref.namespace = "shop".into();
            },
            "its own namespace only",
        ),
    ] {
        let mut new = object("c", Passive);
        edit(&mut new);
        let refusal = judge("c", Change::Create(&new), &steady, &home(), now()).unwrap_err();
        assert!(refusal.to_string().contains(part), "{refusal}");
    }
    let mut twin = object("c", Passive);
    twin.spec.provider = object("a", Active).spec.provider;
    assert_eq!(
        judge("c", Change::Create(&twin), &steady, &home(), now()),
        Err(Refusal::RootTaken("a".into()))
    );
}

fn report(component: &str) -> Report {
    let is_controller = component == "osm-controller";
    Report {
        component: component.into(),
        generation: 1,
        fingerprint: "ab".into(),
        trusted: true,
        proxies: is_controller.then_some(Count { total: 3, behind: 0 }),
        secrets: (!is_controller).then_some(Count { total: 3, behind: 0 }),
        settled_seconds: DELIVERED,
        time: now().to_string(),
        ..Report::default()
    }
}

fn replicas() -> BTreeMap<String, Report> {
    let of = |name: &str, component| (name.to_owned(), report(component));
    [
        of("c-1", "osm-controller"),
        of("c-2", "osm-controller"),
        of("i-1", "osm-injector"),
    ]
    .into()
}

#[test]
fn a_root_signs_only_after_everyone_trusts_it() {
    assert_eq!(
        obstacles(Goal::Trusted, Some(1), &replicas()),
        Vec::<String>::new()
    );
    let spoilt = |spoil: fn(&mut BTreeMap<String, Report>)| {
        let mut all = replicas();
        spoil(&mut all);
        obstacles(Goal::Trusted, Some(1), &all).join("\n")
    };
    let one =
        |all: &mut BTreeMap<String, Report>, edit: fn(&mut Report)| edit(all.get_mut("c-2").expect("there"));
    assert!(spoilt(|all| all.clear()).contains("no osm-controller"));
    assert!(spoilt(|all| drop(all.remove("i-1"))).contains("no osm-injector"));
    for (edit, part) in [
        (
            (|report| report.trusted = false) as fn(&mut Report),
            "c-2: does not trust it yet",
        ),
        (|report| report.generation = 0, "not seen the last change"),
        (|report| report.problem = "Vault: down".into(), "c-2: Vault: down"),
        (|report| report.fingerprint = "cd".into(), "different roots"),
        (|report| report.proxies = None, "has not looked at its sidecars"),
        (
            |report| report.proxies = Some(Count { total: 5, behind: 2 }),
            "2 of 5 connected sidecars",
        ),
        (|report| report.settled_seconds = 3, "settling: 3 of 10 s"),
    ] {
        let mut all = replicas();
        one(&mut all, edit);
        let found = obstacles(Goal::Trusted, Some(1), &all).join("\n");
        assert!(found.contains(part), "{found:?} lacks {part}");
    }
    let behind = |all: &mut BTreeMap<String, Report>| {
        all.get_mut("i-1").expect("there").secrets = Some(Count { total: 9, behind: 1 });
    };
    assert!(spoilt(behind).contains("1 of 9 bootstrap Secrets"));
    assert!(spoilt(|all| all.get_mut("i-1").expect("there").settled_seconds = 60).contains("60 of 120 s"));
    assert!(
        spoilt(|all| all.get_mut("i-1").expect("there").secrets = None).contains("no injector has counted")
    );
}

#[test]
fn a_root_goes_only_after_nothing_in_use_is_signed_by_it() {
    let with = |edit: fn(&mut Report)| {
        let mut all = replicas();
        edit(all.get_mut("c-1").expect("there"));
        obstacles(Goal::Unused, None, &all).join("\n")
    };
    assert_eq!(with(|_| ()), "");
    assert!(with(|report| report.signing = true).contains("still signs"));
    assert!(with(|report| report.certificates = 4).contains("4 certificates"));
    assert!(with(|report| report.proxies = Some(Count { total: 1, behind: 1 })).contains("1 of 1"));
    assert_eq!(obstacles(Goal::Gone, None, &replicas()).len(), 3);
}

#[test]
fn steps_that_come_too_early_are_refused_until_the_mesh_has_followed() {
    let mut at = objects(&[("a", Role::Active), ("b", Role::Passive)]);
    let mut old = object("b", Role::Passive);
    old.metadata.annotations = None;
    let mut new = old.clone();
    new.spec.role = Role::Active;
    let ask = |old: &MeshRootCertificate, at: &Objects| {
        judge("b", Change::Update { old, new: &new }, at, &home(), now())
    };
    assert!(matches!(ask(&old, &at), Err(Refusal::TooEarly(_))));
    let status = json!({"replicas": replicas(), "conditions": 7});
    old.status = Some(crate::api::mesh_root_certificate::MeshRootCertificateStatus(
        status,
    ));
    assert_eq!(ask(&old, &at), Ok(()));
    // Reports of long ago count for nothing.
    let late = now() + jiff::SignedDuration::from_secs(600);
    assert!(judge("b", Change::Update { old: &old, new: &new }, &at, &home(), late).is_err());
    // The old root goes by what is said of the old root.
    at = objects(&[("a", Role::Passive), ("b", Role::Active)]);
    let mut old = object("a", Role::Passive);
    old.metadata.annotations = None;
    let mut new = old.clone();
    new.spec.role = Role::Inactive;
    assert!(matches!(
        judge("a", Change::Update { old: &old, new: &new }, &at, &home(), now()),
        Err(Refusal::TooEarly(_))
    ));
}

#[test]
fn a_status_that_is_not_ours_harms_nothing() {
    for odd in [
        json!(null),
        json!("x"),
        json!({"replicas": []}),
        json!({"replicas": {"a": 7}}),
    ] {
        assert!(reports(&odd).is_empty(), "{odd}");
    }
    let some = reports(&json!({"replicas": {"a": {"trusted": true, "more": 1}, "b": {"trusted": "no"}}}));
    assert_eq!(some.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn sources_survive_being_written_down() {
    let token = SecretKey {
        name: "token".into(),
        key: "t".into(),
    };
    let vault = |token| Source::Vault {
        protocol: "https".into(),
        host: "vault".into(),
        port: 8200,
        role: "mesh".into(),
        token,
    };
    let issuer = Source::CertManager {
        issuer: "ca".into(),
        kind: "Issuer".into(),
        group: "cert-manager.io".into(),
    };
    for source in [source("a"), vault(Some(token.clone())), issuer] {
        let provider = source.to_provider("osm-system").expect("it can be written down");
        assert_eq!(Source::from(&provider, "osm-system"), Ok(source));
    }
    assert!(
        vault(None).is_same(&vault(Some(token))),
        "the token is no part of the root"
    );
    assert_eq!(vault(None).to_provider("osm-system"), None);
}
