//! How far the mesh has followed a role: what each replica reports in an object's status, and what of it stands in the
//! way of the next step.
//!
//! Invariant: what is not known stands in the way. Clocks of different machines are compared only to leave out replicas
//! that have long been silent; how long a state has lasted is measured by the replica itself.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Role;
use crate::api::names;

/// Most replicas whose reports are read: far more than there may be.
const MOST_REPLICAS: usize = 256;
/// Seconds a state must have lasted before it is believed: longer than it takes the engine and a stream to pass
/// something on.
pub const SETTLED: u64 = 10;
/// Seconds the bootstrap Secrets must have been in order: within them every kubelet has brought its pods' files up to
/// date (its period is a minute, jittered).
pub const DELIVERED: u64 = 120;
/// Seconds after which a replica that says nothing is taken for gone, when nobody knows which replicas there are.
pub const SILENT: i64 = 120;

/// What a replica says of one root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// `osm-controller` or `osm-injector`.
    pub component: String,
    /// The generation of the object that is in force.
    pub generation: i64,
    /// The role in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// SHA-256 of the root certificate, once it is loaded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// The root's end, RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub not_after: String,
    /// Whether it is in every bundle this replica serves.
    pub trusted: bool,
    /// Whether it signs.
    pub signing: bool,
    /// Certificates in use here that it signed.
    pub certificates: u64,
    /// The sidecars connected here, while roots are being rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies: Option<Count>,
    /// The bootstrap Secrets, from the injector that looks after them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Count>,
    /// For how many seconds all this has been so, at `time`.
    pub settled_seconds: u64,
    /// When it was written, RFC 3339.
    pub time: String,
    /// Why the role is not in force.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// How many there are, and how many of them do not have yet what they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// All.
    pub total: u64,
    /// Those that are behind.
    pub behind: u64,
}

impl Report {
    /// What it says but for numbers that come and go: while this stays equal, the state lasts.
    pub fn state(&self) -> impl PartialEq + Clone + use<> {
        let behind = |count: Option<Count>| count.map(|count| count.behind > 0);
        (
            (
                self.generation,
                self.role,
                self.fingerprint.clone(),
                self.problem.clone(),
            ),
            (self.trusted, self.signing, self.certificates > 0),
            (behind(self.proxies), behind(self.secrets)),
        )
    }

    /// Whether it is recent at `now`.
    pub fn is_recent(&self, now: Timestamp) -> bool {
        let said: Option<Timestamp> = self.time.parse().ok();
        said.is_some_and(|said| now.duration_since(said) <= SignedDuration::from_secs(SILENT))
    }
}

/// The reports in a status; what cannot be read is left out.
pub fn reports(status: &serde_json::Value) -> BTreeMap<String, Report> {
    let replicas = status.get("replicas").and_then(|replicas| replicas.as_object());
    let read = |(name, report): (&String, &serde_json::Value)| {
        Some((name.clone(), Report::deserialize(report).ok()?))
    };
    replicas
        .into_iter()
        .flatten()
        .take(MOST_REPLICAS)
        .filter_map(read)
        .collect()
}

/// What a step needs of every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Everyone trusts the root: it may sign.
    Trusted,
    /// The root signs everywhere.
    Signing,
    /// Nothing in use is signed by the root: it need not be trusted any more.
    Unused,
    /// Nobody trusts the root.
    Gone,
}

/// What stands between the mesh and `goal` for a root, by what its replicas report: one line each, ordered. Empty when
/// the goal is reached. `generation` is that of the object, when it is known that replicas should have seen it.
pub fn obstacles(goal: Goal, generation: Option<i64>, reports: &BTreeMap<String, Report>) -> Vec<String> {
    let mut found = Vec::new();
    for component in [names::CONTROLLER, names::INJECTOR] {
        if !reports.values().any(|report| report.component == component) {
            found.push(format!("no {component} has reported yet"));
        }
    }
    let looked_after = reports.values().any(|report| report.secrets.is_some());
    if matches!(goal, Goal::Trusted | Goal::Unused) && !looked_after {
        found.push("no injector has counted the bootstrap Secrets yet".to_owned());
    }
    let fingerprints: Vec<&str> = reports
        .values()
        .map(|report| report.fingerprint.as_str())
        .filter(|fingerprint| !fingerprint.is_empty())
        .collect();
    if fingerprints.windows(2).any(|pair| pair[0] != pair[1]) && goal != Goal::Gone {
        found.push("replicas have loaded different roots from the same provider".to_owned());
    }
    for (name, report) in reports {
        if let Some(obstacle) = obstacle(goal, generation, report) {
            found.push(format!("{name}: {obstacle}"));
        }
    }
    found
}

fn obstacle(goal: Goal, generation: Option<i64>, report: &Report) -> Option<String> {
    if !report.problem.is_empty() {
        return Some(report.problem.clone());
    }
    if generation.is_some_and(|generation| report.generation < generation) {
        return Some("has not seen the last change yet".to_owned());
    }
    match goal {
        Goal::Trusted if !report.trusted => return Some("does not trust it yet".to_owned()),
        Goal::Signing if !report.signing => return Some("does not sign with it yet".to_owned()),
        Goal::Unused if report.signing => return Some("still signs with it".to_owned()),
        Goal::Unused if report.certificates > 0 => {
            let number = report.certificates;
            return Some(format!("still uses {number} certificates signed by it"));
        }
        Goal::Gone if report.trusted => return Some("still trusts it".to_owned()),
        _ => {}
    }
    if !matches!(goal, Goal::Trusted | Goal::Unused) {
        return None;
    }
    let lag = |count: Option<Count>, what: &str| {
        let Count { total, behind } = count?;
        (behind > 0).then(|| format!("{behind} of {total} {what} are behind"))
    };
    let lagging =
        lag(report.proxies, "connected sidecars").or_else(|| lag(report.secrets, "bootstrap Secrets"));
    if lagging.is_some() {
        return lagging;
    }
    if report.component == names::CONTROLLER && report.proxies.is_none() {
        return Some("has not looked at its sidecars yet".to_owned());
    }
    let (wanted, why) = match report.secrets {
        Some(_) => (DELIVERED, "kubelets are delivering the Secrets"),
        None => (SETTLED, "settling"),
    };
    (report.settled_seconds < wanted).then(|| format!("{why}: {} of {wanted} s", report.settled_seconds))
}
