//! `osm proxy status`: how each sidecar stands with the controllers.
//!
//! Every controller is asked at once; one that does not answer is named, and its sidecars are shown as unknown.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use osm_core::api::{labels, names, ports};
use osm_core::status::{Connection, Kind, PROXIES_PAGE, Proxies, Standing};
use serde::Serialize;

use crate::check::span;
use crate::cluster::Cluster;
use crate::output::{self, table, warn};
use crate::{DEFAULT_MESH, Global, forward, mesh_name, namespace_name};

/// The kinds, in the order of the columns.
const KINDS: [&str; 5] = ["CDS", "LDS", "EDS", "RDS", "SDS"];

/// How sidecars are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    /// With service account, address, protocol and uuid.
    Wide,
    Json,
}

/// Shows how each sidecar stands with the controllers.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Name of a pod [default: all]
    pod: Option<String>,
    /// Namespace of the pods [default: all; of a named pod: default]
    #[arg(short, long, value_parser = namespace_name)]
    namespace: Option<String>,
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH, value_parser = mesh_name)]
    mesh_name: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A sidecar.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    /// The controller it is connected to.
    controller: Option<String>,
    /// How long it has been connected.
    connected_seconds: Option<i64>,
    /// What is left of its certificate.
    certificate_left_seconds: Option<i64>,
    /// What the controller says; of one that is connected nowhere its namespace and uuid only.
    #[serde(flatten)]
    connection: Connection,
}

/// A controller that did not answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Silent {
    controller: String,
    error: String,
}

#[derive(Debug, Serialize)]
struct Report {
    proxies: Vec<Row>,
    silent: Vec<Silent>,
}

impl Status {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let cluster = Cluster::connect(global).await?;
        let mesh = cluster.mesh(&self.mesh_name).await?;
        let pods = self.pods(&cluster).await?;
        let path = match pods.as_slice() {
            [(_, _, uuid)] if self.pod.is_some() => format!("{PROXIES_PAGE}?uuid={uuid}"),
            _ => PROXIES_PAGE.to_owned(),
        };
        let controllers = cluster.component_pods(&mesh.namespace, names::CONTROLLER).await?;
        if controllers.is_empty() {
            bail!(
                "Mesh [{}] has no controller: osm check shows what is in the way",
                mesh.name
            );
        }
        let answers =
            forward::ask_all::<Proxies>(&cluster, &mesh.namespace, &controllers, ports::DEBUG, &path).await;
        let report = join(pods, answers);
        for Silent { controller, error } in &report.silent {
            warn(&format!(
                "controller {controller} does not answer, its sidecars are shown as unknown: {error}"
            ));
        }
        match self.output {
            Format::Json => output::json(&report),
            Format::Table => output::print(&text(&report, false)),
            Format::Wide => output::print(&text(&report, true)),
        }
    }

    /// Namespace, name and uuid of the pods that are asked about.
    async fn pods(&self, cluster: &Cluster) -> Result<Vec<(String, String, String)>> {
        let mut params = ListParams::default().labels(labels::PROXY_UUID);
        let mut fields = vec!["status.phase=Running".to_owned()];
        let namespace = self
            .namespace
            .clone()
            .or_else(|| self.pod.as_ref().map(|_| "default".to_owned()));
        if let Some(pod) = &self.pod {
            fields.push(format!("metadata.name={pod}"));
        }
        params = params.fields(&fields.join(","));
        let api: Api<Pod> = match &namespace {
            Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
            None => Api::all(cluster.client.clone()),
        };
        let list = api
            .list_metadata(&params)
            .await
            .context("Could not list the pods that have a sidecar")?;
        let pods: Vec<_> = list
            .items
            .iter()
            .map(|pod| {
                let uuid = pod.labels().get(labels::PROXY_UUID).cloned().unwrap_or_default();
                (pod.namespace().unwrap_or_default(), pod.name_any(), uuid)
            })
            .collect();
        if let (Some(pod), true) = (&self.pod, pods.is_empty()) {
            let namespace = namespace.unwrap_or_default();
            return Err(anyhow!(
                "There is no running pod [{pod}] with a sidecar in namespace [{namespace}]: choose the namespace with --namespace"
            ));
        }
        Ok(pods)
    }
}

/// Brings pods and connections together, by namespace and name.
fn join(pods: Vec<(String, String, String)>, answers: Vec<(String, Result<Proxies, String>)>) -> Report {
    let mut silent = Vec::new();
    let mut connections: BTreeMap<String, (String, i64, Connection)> = BTreeMap::new();
    for (controller, answer) in answers {
        match answer {
            Err(error) => silent.push(Silent { controller, error }),
            Ok(proxies) => {
                for connection in proxies.proxies {
                    // One that has just moved is still on the other controller's list: the newer one counts.
                    let newer = connections
                        .get(&connection.uuid)
                        .is_none_or(|(_, _, known)| known.since <= connection.since);
                    if newer {
                        let entry = (controller.clone(), proxies.now, connection);
                        connections.insert(entry.2.uuid.clone(), entry);
                    }
                }
            }
        }
    }
    let row = |(namespace, name, uuid): (String, String, String)| match connections.remove(&uuid) {
        Some((controller, now, connection)) => Row {
            name,
            controller: Some(controller),
            connected_seconds: Some(now - connection.since),
            certificate_left_seconds: connection.certificate_not_after.map(|not_after| not_after - now),
            connection,
        },
        None => Row {
            connection: Connection {
                uuid,
                namespace,
                ..Connection::default()
            },
            name,
            controller: None,
            connected_seconds: None,
            certificate_left_seconds: None,
        },
    };
    let mut proxies: Vec<Row> = pods.into_iter().map(row).collect();
    proxies.sort_by(|one, other| {
        (&one.connection.namespace, &one.name).cmp(&(&other.connection.namespace, &other.name))
    });
    Report { proxies, silent }
}

fn text(report: &Report, wide: bool) -> String {
    if report.proxies.is_empty() {
        return "No running pod has a sidecar\n".to_owned();
    }
    let mut header = vec!["NAME", "NAMESPACE", "CONTROLLER", "CONNECTED"];
    header.extend(KINDS);
    header.push("CERT LEFT");
    if wide {
        header.extend(["SERVICE ACCOUNT", "ADDRESS", "PROTOCOL", "UUID"]);
    }
    let absent = if report.silent.is_empty() {
        "not connected"
    } else {
        "unknown"
    };
    let time = |seconds: Option<i64>| seconds.map_or_else(|| "-".to_owned(), span);
    let cells = |row: &Row| {
        let connection = &row.connection;
        let mut cells = vec![
            row.name.clone(),
            connection.namespace.clone(),
            row.controller.clone().unwrap_or_else(|| absent.to_owned()),
            time(row.connected_seconds),
        ];
        cells.extend(KINDS.map(|kind| state(connection, kind)));
        cells.push(time(row.certificate_left_seconds));
        if wide {
            let known = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text.to_owned()
                }
            };
            cells.extend([
                known(&connection.service_account),
                known(&connection.address),
                known(&connection.protocol),
                known(&connection.uuid),
            ]);
        }
        cells
    };
    let rows: Vec<Vec<String>> = report.proxies.iter().map(cells).collect();
    let mut text = table(&header, &rows);
    for row in &report.proxies {
        for (kind, standing) in row.connection.kinds.iter().flatten() {
            if standing.state == Standing::Nacked {
                let reason = standing.reason.as_deref().unwrap_or("it gave no reason");
                let (namespace, name) = (&row.connection.namespace, &row.name);
                let rejected = standing.rejected.join(", ");
                text.push_str(&format!(
                    "\n{namespace}/{name} rejects {kind} {rejected}: {reason}\n"
                ));
            }
        }
    }
    text
}

/// How a sidecar stands with a kind; nothing of one it has not asked for.
fn state(connection: &Connection, kind: &str) -> String {
    let Some(kinds) = &connection.kinds else {
        return if connection.since == 0 { "-" } else { "no answer" }.to_owned();
    };
    match kinds.get(kind) {
        None => "-".to_owned(),
        Some(Kind {
            state: Standing::Synced,
            ..
        }) => "synced".to_owned(),
        Some(Kind {
            state: Standing::Nacked,
            ..
        }) => "nacked".to_owned(),
        Some(Kind { waiting_seconds, .. }) => {
            let waiting = waiting_seconds.unwrap_or(0);
            format!("stale {}", span(i64::try_from(waiting).unwrap_or(i64::MAX)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(uuid: &str, since: i64) -> Connection {
        Connection {
            uuid: uuid.to_owned(),
            namespace: "shop".to_owned(),
            service_account: "till".to_owned(),
            address: "10.0.0.1:5".to_owned(),
            since,
            protocol: "delta".to_owned(),
            kinds: Some([("CDS".to_owned(), Kind::default())].into()),
            certificate_not_after: Some(4_600),
        }
    }

    fn answer(pod: &str, proxies: Vec<Connection>) -> (String, Result<Proxies, String>) {
        let proxies = Proxies {
            pod: pod.to_owned(),
            now: 1_000,
            proxies,
        };
        (pod.to_owned(), Ok(proxies))
    }

    fn pod(name: &str, uuid: &str) -> (String, String, String) {
        ("shop".to_owned(), name.to_owned(), uuid.to_owned())
    }

    #[test]
    fn one_row_for_each_pod_from_the_controller_it_came_to_last() {
        let report = join(
            vec![pod("b", "2"), pod("a", "1")],
            vec![
                answer("c-0", vec![connection("1", 900)]),
                answer("c-1", vec![connection("1", 940), connection("9", 1)]),
            ],
        );
        assert_eq!(
            text(&report, false),
            "NAME   NAMESPACE   CONTROLLER      CONNECTED   CDS      LDS   EDS   RDS   SDS   CERT LEFT\n\
             a      shop        c-1             1m          synced   -     -     -     -     1h\n\
             b      shop        not connected   -           -        -     -     -     -     -\n"
        );
    }

    #[test]
    fn a_controller_that_does_not_answer_leaves_its_sidecars_unknown() {
        let silent = ("c-1".to_owned(), Err("no answer within 5 s".to_owned()));
        let report = join(
            vec![pod("a", "1"), pod("b", "2")],
            vec![answer("c-0", vec![connection("1", 10)]), silent],
        );
        assert_eq!(report.silent.len(), 1);
        let text = text(&report, true);
        assert!(
            text.contains("unknown") && !text.contains("not connected"),
            "{text}"
        );
        assert!(text.contains("10.0.0.1:5"), "{text}");
    }

    #[test]
    fn rejections_are_shown_with_their_reason() {
        let mut rejecting = connection("1", 10);
        let nacked = Kind {
            state: Standing::Nacked,
            rejected: vec!["outbound-listener".to_owned()],
            reason: Some("no such cluster".to_owned()),
            ..Kind::default()
        };
        let stale = Kind {
            state: Standing::Stale,
            waiting_seconds: Some(12),
            ..Kind::default()
        };
        rejecting.kinds = Some([("LDS".to_owned(), nacked), ("EDS".to_owned(), stale)].into());
        let mut dumb = connection("2", 10);
        dumb.kinds = None;
        let report = join(
            vec![pod("a", "1"), pod("b", "2")],
            vec![answer("c-0", vec![rejecting, dumb])],
        );
        let text = text(&report, false);
        assert!(
            text.contains("nacked") && text.contains("stale 12s") && text.contains("no answer"),
            "{text}"
        );
        assert!(
            text.ends_with("\nshop/a rejects LDS outbound-listener: no such cluster\n"),
            "{text}"
        );
    }
}
