//! The page `/proxies`: how each proxy that is connected to this replica stands. For `osm proxy status` and `osm check`.
//!
//! Served on the pod's loopback only, always: it names workloads, and who wants to know whether a proxy is in step wants
//! to know it when nothing was switched on beforehand. Invariant: bounded in time, whatever the streams do, and in size
//! by the number of proxies; a stream that does not answer is shown as such.

use std::{collections::HashMap, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use futures::StreamExt;
use jiff::Timestamp;
use osm_core::{
    identity::ServiceIdentity,
    status::{self, Held, Kind, MOST_REJECTED, PROXIES_PAGE, Proxies, Serves, Standing},
};
use osm_runtime::status::Status;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::{
    ads::{Ads, Connection, StreamStatus, kind_name},
    certificates::Certificates,
    mesh::Mesh,
};

/// Streams asked at a time.
const CONCURRENT: usize = 256;
/// Longest time to ask all of them.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the page shows.
#[derive(Clone, Debug)]
pub struct Connections {
    /// This replica's pod.
    pub pod: String,
    /// The streams.
    pub ads: Ads,
    /// The certificates of the proxies.
    pub certificates: Certificates,
}

#[derive(Debug, Deserialize)]
struct Only {
    uuid: Option<Uuid>,
}

impl Connections {
    /// The page, to be served on loopback.
    pub fn router(self) -> Router {
        let page = async |State(connections): State<Self>, Query(only): Query<Only>| {
            Json(connections.page(only.uuid).await)
        };
        Router::new().route(PROXIES_PAGE, get(page)).with_state(self)
    }

    /// How the proxies stand; of all, or of one.
    pub async fn page(&self, only: Option<Uuid>) -> Proxies {
        let mut connections = self.ads.registry().connections();
        connections.retain(|connection| only.is_none_or(|uuid| connection.proxy.uuid == uuid));
        let lives: HashMap<ServiceIdentity, i64> = self
            .certificates
            .held()
            .into_iter()
            .filter_map(|held| Some((held.identity, held.validity?.not_after.as_second())))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let rows = futures::stream::iter(connections).map(|connection| {
            let not_after = lives.get(&connection.proxy.service).copied();
            async move {
                let stream = timeout_at(deadline, connection.status()).await.ok().flatten();
                row(&connection, stream.as_ref(), not_after)
            }
        });
        Proxies {
            pod: self.pod.clone(),
            now: Timestamp::now().as_second(),
            proxies: rows.buffered(CONCURRENT).collect().await,
        }
    }
}

fn row(connection: &Connection, stream: Option<&StreamStatus>, not_after: Option<i64>) -> status::Connection {
    status::Connection {
        uuid: connection.proxy.uuid.to_string(),
        namespace: connection.proxy.service.namespace.to_string(),
        service_account: connection.proxy.service.name.to_string(),
        address: connection.address.to_string(),
        since: connection.since.as_second(),
        protocol: connection.variant.to_owned(),
        kinds: stream.map(kinds),
        certificate_not_after: not_after,
    }
}

fn kinds(stream: &StreamStatus) -> std::collections::BTreeMap<String, Kind> {
    let kind = |kind: &osm_core::xds::KindStatus| {
        let state = match (kind.rejected.is_empty(), kind.in_flight) {
            (false, _) => Standing::Nacked,
            (true, true) => Standing::Stale,
            (true, false) => Standing::Synced,
        };
        let rejected = kind.rejected.iter().take(MOST_REJECTED);
        let standing = Kind {
            state,
            waiting_seconds: stream.waiting(kind.kind).map(|waiting| waiting.as_secs()),
            rejected: rejected.map(|(name, _)| name.to_string()).collect(),
            reason: stream.reason(kind.kind).map(str::to_owned),
        };
        (kind_name(kind.kind).to_owned(), standing)
    };
    stream.kinds.iter().map(kind).collect()
}

/// Adds to the page `/status` how many proxies there are, and how long what they hold lives.
pub fn describe(status: &Status, mesh: &Mesh, ads: &Ads, certificates: &Certificates) {
    let (mesh, ads, certificates) = (mesh.clone(), ads.clone(), certificates.clone());
    status.describe(move |page| {
        let snapshot = mesh.snapshot();
        let (count, first) = certificates.in_the_field();
        page.serves = Some(Serves {
            connected: ads.registry().len() as u64,
            known: snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.proxy_count() as u64),
            revision: snapshot.as_ref().map_or(0, |snapshot| snapshot.revision),
            certificates: Held {
                count: count as u64,
                first_not_after: first.map(|first| first.as_second()),
                lifetime_seconds: mesh.control().borrow().service_certificate_validity.as_secs(),
            },
        });
    });
}
