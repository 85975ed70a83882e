//! What a replica of the control plane says about itself to operators: the JSON of its pages `/status` and `/proxies`.
//!
//! Owns the words that the replicas write and `osm` reads; decides nothing. Invariants: a page holds no secret and, of
//! what everybody in the cluster can fetch (`/status`), no name of a workload; it is bounded, whatever the mesh is; a
//! field that an older or newer replica does not know reads as its default, so that versions can be mixed. Instants are
//! seconds since 1970 by the replica's own clock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::certificate::{Root, Validity};

/// Where a replica says how it stands, at [`ports::ADMIN`](crate::api::ports::ADMIN).
pub const STATUS_PAGE: &str = "/status";
/// Where a controller says how its proxies stand, at [`ports::DEBUG`](crate::api::ports::DEBUG) on the pod's loopback.
/// `?uuid=` narrows it to one.
pub const PROXIES_PAGE: &str = "/proxies";
/// Where the controller that leads lists pods that lack a sidecar, at [`ports::DEBUG`](crate::api::ports::DEBUG).
pub const UNINJECTED_PAGE: &str = "/uninjected";

/// How a replica stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Replica {
    /// `osm-controller` or `osm-injector`.
    pub component: String,
    /// Its pod.
    pub pod: String,
    /// Its version.
    pub version: String,
    /// Its clock: milliseconds since 1970.
    pub clock_millis: i64,
    /// How long it has been running.
    pub up_seconds: u64,
    /// What keeps it from being ready, by condition.
    pub not_ready: BTreeMap<String, String>,
    /// Loops that have been silent for too long, and for how many seconds.
    pub stuck: BTreeMap<String, u64>,
    /// Whether it holds its component's Lease.
    pub leader: bool,
    /// The roots it trusts.
    pub roots: Vec<RootInUse>,
    /// Its own certificates, by what they are for.
    pub certificates: BTreeMap<String, Life>,
    /// For each kind it watches, seconds since the API server last gave a sign of life; nothing if it never did.
    pub watches: BTreeMap<String, Option<u64>>,
    /// Of a controller, the proxies it serves.
    pub serves: Option<Serves>,
    /// Of the injector that leads, the certificates sidecars connect with.
    pub bootstraps: Option<Held>,
    /// Of the controller that leads, how many pods lack the sidecar they should have.
    pub uninjected: Option<u64>,
}

/// A root certificate in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootInUse {
    /// SHA-256 of the certificate, in hexadecimal, as `openssl x509 -fingerprint -sha256` shows it but for the colons.
    pub fingerprint: String,
    /// Its last instant.
    pub not_after: i64,
}

impl From<&Root> for RootInUse {
    fn from(root: &Root) -> Self {
        Self {
            fingerprint: root.fingerprint(),
            not_after: root.validity().not_after.as_second(),
        }
    }
}

/// The life of a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Life {
    /// Its last instant.
    pub not_after: i64,
    /// How long it was made to live.
    pub lifetime_seconds: u64,
}

impl From<Validity> for Life {
    fn from(validity: Validity) -> Self {
        Self {
            not_after: validity.not_after.as_second(),
            lifetime_seconds: validity.lifetime().as_secs(),
        }
    }
}

/// The proxies a controller serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Serves {
    /// Proxies connected to this replica.
    pub connected: u64,
    /// Proxies of the mesh, wherever they are connected.
    pub known: u64,
    /// The revision it published last.
    pub revision: u64,
    /// The service certificates its proxies hold.
    pub certificates: Held,
}

/// Certificates of one purpose, in the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Held {
    /// How many.
    pub count: u64,
    /// The last instant of the one that ends first.
    pub first_not_after: Option<i64>,
    /// How long new ones are made to live.
    pub lifetime_seconds: u64,
}

/// The proxies of a replica, one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Proxies {
    /// The replica's pod.
    pub pod: String,
    /// The replica's clock: seconds since 1970.
    pub now: i64,
    /// Its proxies, by uuid.
    pub proxies: Vec<Connection>,
}

/// A connected proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Connection {
    /// The proxy's uuid: the label of its pod.
    pub uuid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Where it connects from.
    pub address: String,
    /// Since when.
    pub since: i64,
    /// `delta` or `state`.
    pub protocol: String,
    /// Each kind it opened (`CDS`, `EDS`, `LDS`, `RDS`, `SDS`); nothing if its stream did not answer in time.
    pub kinds: Option<BTreeMap<String, Kind>>,
    /// The last instant of the certificate it was given.
    pub certificate_not_after: Option<i64>,
}

/// How a proxy stands with one kind of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kind {
    /// Whether it has what it should.
    pub state: Standing,
    /// How long the response that it has not answered yet has been waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_seconds: Option<u64>,
    /// Resources it rejected, [`MOST_REJECTED`] at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<String>,
    /// Why, in its own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Most rejected resources that a page names for one kind of one proxy.
pub const MOST_REJECTED: usize = 5;

/// Whether a proxy has what it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It has confirmed all it was sent.
    #[default]
    Synced,
    /// It was sent something and has not answered yet.
    Stale,
    /// It rejected something and goes on with what it had.
    Nacked,
}

/// A pod that should have a sidecar and has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Uninjected {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Why it should have one, and how it may have come without.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_versions_are_read() {
        let page = r#"{"component":"osm-controller","clockMillis":5,"new":{"a":1},
            "serves":{"connected":2,"certificates":{"count":1,"firstNotAfter":9}}}"#;
        let replica: Replica = serde_json::from_str(page).unwrap();
        assert_eq!(
            (replica.component.as_str(), replica.clock_millis),
            ("osm-controller", 5)
        );
        let serves = replica.serves.unwrap();
        assert_eq!((serves.connected, serves.known), (2, 0));
        assert_eq!(serves.certificates.first_not_after, Some(9));
        assert!(replica.roots.is_empty() && replica.uninjected.is_none());
    }

    #[test]
    fn words_of_states_are_fixed() {
        let words = [Standing::Synced, Standing::Stale, Standing::Nacked]
            .map(|state| serde_json::to_string(&state).unwrap());
        assert_eq!(words, ["\"synced\"", "\"stale\"", "\"nacked\""]);
    }
}
