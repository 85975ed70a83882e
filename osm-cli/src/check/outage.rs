//! How long the mesh's pods go on without a control plane.
//!
//! The certificates set the bound: a proxy keeps what it was given until its certificate is over. They are renewed with
//! at least half their life left, so half the configured life is promised; what is left now is measured.

use std::time::Duration;

use kube::api::Api;
use osm_core::api::{MeshConfig, names};
use osm_core::certificate::{DEFAULT_SERVICE_LIFETIME, Validity};
use osm_core::status::Held;

use super::facts::{Answer, Facts};
use super::finding::{Check, Finding, span};
use super::trust::RENEWED_BY;
use crate::cluster::Cluster;

const GROUP: &str = "outage budget";
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A promise of less is hardly meant.
const SHORT: Duration = Duration::from_secs(3_600);

/// How long a MeshConfig has service certificates live.
pub(crate) fn service_lifetime(config: &MeshConfig) -> Duration {
    osm_core::certificate::service_lifetime(&config.spec.certificate.service_cert_validity_duration)
}

/// What certificates of this life promise: how long pods go on without any control plane, at least.
pub(crate) fn promise(lifetime: Duration) -> i64 {
    i64::try_from(Validity::outage_budget(lifetime).as_secs()).unwrap_or(i64::MAX)
}

/// How long the pods of the mesh in this namespace go on without a control plane; nothing if its MeshConfig cannot be
/// read.
pub(crate) async fn outage_budget(cluster: &Cluster, namespace: &str) -> Option<Duration> {
    let configs = Api::<MeshConfig>::namespaced(cluster.client.clone(), namespace);
    let config = tokio::time::timeout(ANSWER, configs.get_opt(names::MESH_CONFIG)).await;
    let lifetime = config
        .ok()?
        .ok()?
        .as_ref()
        .map_or(DEFAULT_SERVICE_LIFETIME, service_lifetime);
    Some(Validity::outage_budget(lifetime))
}

/// An outage budget in a sentence.
pub(crate) fn budget_line(budget: &Duration) -> String {
    let hours = span(i64::try_from(budget.as_secs()).unwrap_or(i64::MAX));
    format!(
        "Without a control plane, the pods in the mesh go on for at least {hours}: half the life of their certificates"
    )
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    vec![services(facts), bootstraps(facts)]
}

fn services(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-outage-budget",
        what: "pods go on without a control plane",
    };
    let lifetime = match &facts.lifetime {
        Ok(lifetime) => lifetime.unwrap_or(DEFAULT_SERVICE_LIFETIME),
        Err(error) => return check.unknown(error),
    };
    let controllers: Vec<(&Answer, &Held)> = facts
        .answers()
        .filter_map(|(_, answer)| Some((answer, &answer.replica.serves.as_ref()?.certificates)))
        .collect();
    if controllers.is_empty() {
        return check.unknown("no controller answers");
    }
    let promised = promise(lifetime);
    let left = |(answer, held): &(&Answer, &Held)| Some(answer.until(held.first_not_after?));
    let left = controllers.iter().filter_map(left).min();
    let roots = facts.answers().flat_map(|(_, answer)| {
        let lives = answer.replica.roots.iter();
        lives.map(|root| answer.until(root.not_after))
    });
    let root = roots.min().unwrap_or(i64::MAX);
    let configured = format!(
        "serviceCertValidityDuration is {}, renewed with half of it left",
        span(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX))
    );
    let now = left.map_or_else(
        || "no proxy holds a certificate now".to_owned(),
        |left| format!("{} now", span(left)),
    );
    let logs = format!(
        "{} logs deployment/osm-controller (`issuing a service certificate failed`)",
        facts.kubectl()
    );
    if let Some(left) = left
        && left <= 0
    {
        return check.fail(
            format!(
                "a certificate in the field has been over for {}: its connections fail",
                span(-left)
            ),
            logs,
        );
    }
    if root < promised {
        return check.fail(
            format!(
                "the root ends in {}, and everything with it, before the promised {}",
                span(root),
                span(promised)
            ),
            "put another root in its place: see docs/checks.md#osm-cp-root-life",
        );
    }
    if let Some(left) = left
        && (left as f64) < lifetime.as_secs_f64() * RENEWED_BY
    {
        return check.warn(
            format!(
                "for {} only, not {}: certificates are not being renewed ({configured})",
                span(left),
                span(promised)
            ),
            logs,
        );
    }
    if promised < i64::try_from(SHORT.as_secs()).unwrap_or(i64::MAX) {
        return check.warn(
            format!("for {} only ({configured}; {now})", span(promised)),
            format!(
                "{} patch meshconfig osm-mesh-config --type merge --patch \
                 '{{\"spec\":{{\"certificate\":{{\"serviceCertValidityDuration\":\"24h\"}}}}}}'",
                facts.kubectl()
            ),
        );
    }
    check.ok_with(format!("for {} at least, {now}; {configured}", span(promised)))
}

fn bootstraps(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-outage-reconnect",
        what: "sidecars can reconnect after an outage",
    };
    let held = facts
        .answers()
        .find_map(|(_, answer)| Some((answer, answer.replica.bootstraps?)));
    let Some((answer, held)) = held else {
        return check.unknown("no injector that leads has looked at the bootstrap Secrets yet");
    };
    let Some(first) = held.first_not_after else {
        return check.ok_with("no sidecar holds a certificate yet");
    };
    let left = answer.until(first);
    let fix = format!(
        "{} logs deployment/osm-injector (`upkeep of a Secret failed`)",
        facts.kubectl()
    );
    if left <= 0 {
        return check.fail(
            format!(
                "the certificate a sidecar connects with has been over for {}",
                span(-left)
            ),
            fix,
        );
    }
    if (left as f64) < held.lifetime_seconds as f64 * RENEWED_BY {
        return check.warn(
            format!(
                "a bootstrap Secret has {} left and should have been renewed",
                span(left)
            ),
            fix,
        );
    }
    check.ok_with(format!("their certificates have {} left at least", span(left)))
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, fixture};
    use super::*;

    /// The healthy mesh, whose first certificate in the field ends in `left` seconds, made to live for `hours`.
    fn budget(hours: u64, left: i64) -> Finding {
        let mut facts = fixture::healthy();
        facts.lifetime = Ok(Some(Duration::from_secs(hours * 3_600)));
        let answer = facts.components[0].replicas.as_mut().unwrap()[1]
            .answer
            .as_mut()
            .unwrap();
        let held = &mut answer.replica.serves.as_mut().unwrap().certificates;
        held.first_not_after = Some(answer.replica.clock_millis / 1_000 + left);
        services(&facts)
    }

    #[test]
    fn the_promise_is_half_the_configured_life() {
        assert_eq!(promise(Duration::from_secs(86_400)), 43_200);
        let finding = budget(24, 50_000);
        assert_eq!(finding.verdict, Verdict::Ok);
        assert_eq!(
            finding.what,
            "pods go on without a control plane (for 12h at least, 13h53m now; serviceCertValidityDuration is 1d, renewed with \
             half of it left)"
        );
    }

    #[test]
    fn certificates_that_are_not_renewed_are_noticed_at_the_worst_replica() {
        assert_eq!(budget(24, 35_000).verdict, Verdict::Ok, "40 % are left");
        let late = budget(24, 20_000);
        assert_eq!(late.verdict, Verdict::Warning);
        assert!(late.why.unwrap().starts_with("for 5h33m only, not 12h"));
        assert_eq!(budget(24, -60).verdict, Verdict::Failure);
    }

    #[test]
    fn a_short_promise_is_a_warning_and_a_root_that_ends_before_it_a_failure() {
        assert_eq!(budget(1, 2_000).verdict, Verdict::Warning);
        let mut facts = fixture::healthy();
        let answer = facts.components[0].replicas.as_mut().unwrap()[0]
            .answer
            .as_mut()
            .unwrap();
        answer.replica.roots[0].not_after = answer.replica.clock_millis / 1_000 + 3_600;
        assert_eq!(services(&facts).verdict, Verdict::Failure);
    }

    #[test]
    fn bootstrap_secrets_that_are_not_renewed_are_noticed() {
        let with = |left: i64| {
            let mut facts = fixture::healthy();
            for instance in facts.components[1].replicas.as_mut().unwrap() {
                let replica = &mut instance.answer.as_mut().unwrap().replica;
                if let Some(held) = &mut replica.bootstraps {
                    held.first_not_after = Some(replica.clock_millis / 1_000 + left);
                }
            }
            bootstraps(&facts)
        };
        assert_eq!(with(100_000).verdict, Verdict::Ok);
        assert_eq!(with(20_000).verdict, Verdict::Warning);
        assert_eq!(with(0).verdict, Verdict::Failure);
    }
}
