//! Tests of the values: the chart's own defaults and schema, and what users give.

use serde_json::json;

use super::*;

const DEFAULTS: &str = include_str!("../../../charts/osm/values.yaml");
const SCHEMA: &str = include_str!("../../../charts/osm/values.schema.json");

fn read(sets: &[&str]) -> Result<Values, ValueError> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Values::read(DEFAULTS, &[], &sets)
}

fn check(sets: &[&str]) -> Result<Vec<String>, ValueError> {
    read(sets)?.check(&Schema::read(SCHEMA)?)
}

#[test]
fn the_defaults_pass_their_own_schema() {
    let defaults = parse("values.yaml", DEFAULTS).unwrap();
    Schema::read(SCHEMA).unwrap().check(&defaults).unwrap();
    assert_eq!(check(&[]), Ok(vec![]));
}

/// Every refusal, in both spellings: what is given, and what the sentence must say.
#[test]
fn bad_values_are_refused_in_one_sentence() {
    let table: &[(&[&str], &str)] = &[
        (
            &["{p}.osmController.autoScale.minReplicas=0"],
            "{p}.osmController.autoScale.minReplicas is 0: it must be from 1 to 10",
        ),
        (
            &["{p}.injector.autoScale.minReplicas=11"],
            "{p}.injector.autoScale.minReplicas is 11: it must be from 1 to 10",
        ),
        (&["{p}.injector.autoScale.maxReplicas=11"], "must be from 1 to 10"),
        (
            &["{p}.osmController.autoScale.targetAverageUtilization=101"],
            "is 101: it must be from 0 to 100",
        ),
        (
            &["{p}.osmController.autoScale.targetAverageUtilization=-1"],
            "is -1: it must be from 0 to 100",
        ),
        (
            &["{p}.injector.autoScale.cpu.targetAverageUtilization=101"],
            "must be from 0 to 100",
        ),
        (
            &["{p}.injector.autoScale.memory.targetAverageUtilization=200"],
            "must be from 0 to 100",
        ),
        (
            &["{p}.osmController.autoScale.minReplicas=4,{p}.osmController.autoScale.maxReplicas=3"],
            "minReplicas is 4, more than maxReplicas, which is 3",
        ),
        (
            &["{p}.osmController.autoScale.minReplicas=6"],
            "minReplicas is 6, more than maxReplicas, which is 5",
        ),
        (
            &["{p}.osmController.autoScale.minReplicas=two"],
            "is \"two\": it must be a whole number",
        ),
        (
            &["{p}.osmController.replicaCount=0"],
            "replicaCount is 0: it must be at least 1",
        ),
        (&["{p}.osmController.replicaCount=-1"], "must be at least 1"),
        (&["{p}.osmController.replicas=2"], "is not a value of the chart"),
        (
            &["{p}.osmController.replicaCont=2"],
            "did you mean {p}.osmController.replicaCount?",
        ),
        (
            &["{p}.osmcontroller.replicaCount=2"],
            "did you mean {p}.osmController?",
        ),
        (
            &["{p}.enablePodDisruptionBudget=true"],
            "did you mean OpenServiceMesh.injector.enablePodDisruptionBudget or OpenServiceMesh.osmController.enablePodDisruptionBudget?",
        ),
        (
            &["{p}.injector.failurePolicy=Maybe"],
            "must be one of Fail, Ignore",
        ),
        (&["{p}.meshName=My_Mesh"], "a name of lower case letters"),
        (
            &["{p}.certificateProvider.serviceCertValidityDuration=tomorrow"],
            "a duration such as 24h",
        ),
        (
            &["{p}.outboundIPRangeExclusionList={10.0.0.0/33}"],
            "[0] is \"10.0.0.0/33\": it must be an IPv4 range",
        ),
        (
            &["{p}.outboundPortExclusionList={70000}"],
            "must be from 1 to 65535",
        ),
        (&["{p}.enableEgress=yes"], "is \"yes\": it must be true or false"),
        (&["{p}.injector=2"], "is 2: it must be a map"),
        (
            &[
                "{p}.osmController.autoScale.enable=true",
                "{p}.osmController.autoScale.targetAverageUtilization=0",
            ],
            "give 1 to 100",
        ),
        (
            &["{p}.ha=true", "{p}.injector.autoScale.maxReplicas=2"],
            "--ha needs at least 3 replicas",
        ),
        (
            &[
                "{p}.ha=true",
                "{p}.injector.autoScale.memory.targetAverageUtilization=0",
            ],
            "or leave it out",
        ),
        (&["{p}.certificateProvider.kind=vault"], "vault.host is empty"),
        (
            &["{p}.certificateProvider.kind=vault,{p}.vault.host=v"],
            "needs one of them",
        ),
        (
            &[
                "{p}.injector.autoScale.targetAverageUtilization=50",
                "{p}.injector.autoScale.cpu.targetAverageUtilization=60",
            ],
            "the same value",
        ),
    ];
    for prefix in [CANONICAL, ALIAS] {
        for (sets, expected) in table {
            let sets: Vec<String> = sets.iter().map(|set| set.replace("{p}", prefix)).collect();
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            let error = check(&sets)
                .expect_err(&format!("{sets:?} was let through"))
                .to_string();
            let expected = expected.replace("{p}", prefix);
            assert!(error.contains(&expected), "{sets:?}: {error}");
            assert!(!error.contains('\n'), "{sets:?}: more than a line: {error}");
        }
    }
}

#[test]
fn good_values_pass() {
    for sets in [
        &[
            "OpenServiceMesh.osmController.autoScale.enable=true",
            "OpenServiceMesh.osmController.autoScale.minReplicas=1",
        ][..],
        &["osm.injector.autoScale.minReplicas=10,osm.injector.autoScale.maxReplicas=10"],
        &["OpenServiceMesh.injector.autoScale.targetAverageUtilization=0"],
        &["OpenServiceMesh.injector.autoScale.targetAverageUtilization=100"],
        &["OpenServiceMesh.outboundPortExclusionList={6379,7070}"],
        &["OpenServiceMesh.osmController.podLabels.team=mesh"],
        &["OpenServiceMesh.meshName=a", "osm.meshName=a"],
        &[
            "OpenServiceMesh.prometheus.retention.time=1d",
            "osm.osmBootstrap.replicaCount=1",
            "contour.enabled=false",
        ],
        &["OpenServiceMesh.osmController.tolerations[0].key=dedicated"],
        &["OpenServiceMesh.certificateProvider.kind=vault,osm.vault.host=v,osm.vault.token=t"],
    ] {
        assert_eq!(check(sets), Ok(vec![]), "{sets:?}");
    }
}

#[test]
fn both_spellings_are_one_value() {
    let error = check(&["OpenServiceMesh.enableEgress=true", "osm.enableEgress=false"])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "OpenServiceMesh.enableEgress is true but osm.enableEgress, the same value, is false: give one of them only"
    );
    let values = read(&["osm.osmController.replicaCount=3"]).unwrap();
    assert_eq!(values.get("osmController.replicaCount"), 3);
    assert_eq!(values.get("injector.replicaCount"), 1);
}

#[test]
fn one_replica_with_a_budget_is_warned_about() {
    let warnings = check(&["OpenServiceMesh.injector.enablePodDisruptionBudget=true"]).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("osm-injector has a disruption budget and may have one replica only"),
        "{warnings:?}"
    );
    for enough in [
        &[
            "osm.injector.enablePodDisruptionBudget=true",
            "osm.injector.replicaCount=2",
        ][..],
        &[
            "osm.injector.enablePodDisruptionBudget=true",
            "osm.injector.autoScale.enable=true",
            "osm.injector.autoScale.minReplicas=2",
        ],
        &["osm.ha=true"],
    ] {
        assert_eq!(check(enough), Ok(vec![]), "{enough:?}");
    }
}

#[test]
fn what_is_no_longer_there_is_warned_about() {
    let warnings = check(&["osm.deployPrometheus=true"]).unwrap();
    assert!(
        warnings[0].contains("OpenServiceMesh.deployPrometheus has no effect"),
        "{warnings:?}"
    );
}

#[test]
fn set_is_read_as_helm_reads_it() {
    for (text, expected) in [
        ("a=1", json!({"a": 1})),
        ("a.b=x,a.c=y", json!({"a": {"b": "x", "c": "y"}})),
        (
            "a=true,b=False,c=null,d=0,e=007,f=-3,g=1.5",
            json!({"a": true, "b": false, "c": null, "d": 0, "e": "007", "f": -3, "g": "1.5"}),
        ),
        ("a={x,1,true}", json!({"a": ["x", 1, true]})),
        ("a={}", json!({"a": []})),
        ("a={x},b=y", json!({"a": ["x"], "b": "y"})),
        ("a[1].b=x", json!({"a": [null, {"b": "x"}]})),
        ("a[0][1]=x", json!({"a": [[null, "x"]]})),
        (r"a=x\,y", json!({"a": "x,y"})),
        (r"a\.b=x", json!({"a.b": "x"})),
        ("a==x", json!({"a": "=x"})),
        ("a=", json!({"a": ""})),
    ] {
        let mut values = json!({});
        set::apply(&mut values, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(values, expected, "{text}");
    }
    for (text, expected) in [
        ("", "is empty"),
        ("a", "has no \"=\""),
        ("a.b", "has no \"=\""),
        ("a=1,b", "has no \"=\""),
        ("=1", "empty key"),
        ("a..b=1", "empty key"),
        ("a[x]=1", "list index"),
        ("a[1=1", "list index"),
        ("a[70000]=1", "list index"),
        ("a={x", "closing"),
        ("a={x}y", "after a list"),
    ] {
        let error = set::apply(&mut json!({}), text).expect_err(text).to_string();
        assert!(
            error.starts_with("invalid format for --set:") && error.contains(expected),
            "{text}: {error}"
        );
    }
}

#[test]
fn files_come_before_sets_and_must_be_yaml() {
    let file = |text: &str| vec![("my.yaml".to_owned(), text.to_owned())];
    let sets = ["OpenServiceMesh.osmController.replicaCount=4".to_owned()];
    let values = Values::read(
        DEFAULTS,
        &file("OpenServiceMesh:\n  osmController:\n    replicaCount: 2\n  meshName: x\n"),
        &sets,
    )
    .unwrap();
    assert_eq!(
        (values.get("osmController.replicaCount"), values.get("meshName")),
        (json!(4), json!("x"))
    );
    assert!(Values::read(DEFAULTS, &file(""), &[]).is_ok());
    for (text, expected) in [
        ("- a\n", "my.yaml is not a map"),
        ("a: [", "my.yaml is not YAML"),
        ("text", "my.yaml is not a map"),
    ] {
        let error = Values::read(DEFAULTS, &file(text), &[]).unwrap_err().to_string();
        assert!(
            error.contains(expected) && !error.contains('\n'),
            "{text}: {error}"
        );
    }
}
