//! What the cluster says of a mesh's roots: the objects, the replicas that are there, and the sidecars.
//!
//! Invariant: a replica or a sidecar that is there and of which nothing is known stands in the way of every step.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use osm_core::api::{MeshRootCertificate, labels, names};
use osm_core::certificate::rotation::progress::{self, Goal};
use osm_core::certificate::rotation::{Home, Objects, Report, RootObject, SecretKey, Source};

use crate::cluster::{Cluster, Mesh};

/// The mesh's roots at a moment.
pub(crate) struct State {
    pub(crate) home: Home,
    /// With the reports of replicas that are there, and an empty one of each that has not reported.
    pub(crate) objects: Objects,
    /// Sidecars that run.
    sidecars: u64,
}

/// When each replica last wrote, by replica.
pub(crate) type Times = BTreeMap<String, String>;

impl State {
    pub(crate) async fn read(cluster: &Cluster, mesh: &Mesh) -> Result<State> {
        let home = home(cluster, mesh).await?;
        let list = api(cluster, mesh)
            .list(&ListParams::default())
            .await
            .with_context(|| {
                format!(
                    "Could not list the MeshRootCertificates in namespace [{}]",
                    mesh.namespace
                )
            })?;
        let replicas = replicas(cluster, mesh).await?;
        let mut objects = Objects::default();
        for object in list {
            let name = object.name_any();
            match RootObject::from(&object, &home) {
                Ok(mut object) => {
                    object.reports.retain(|replica, _| replicas.contains_key(replica));
                    for (replica, component) in &replicas {
                        object
                            .reports
                            .entry(replica.clone())
                            .or_insert_with(|| silent(component));
                    }
                    objects.readable.insert(name, object);
                }
                Err(problem) => drop(objects.problems.insert(name, problem)),
            }
        }
        let sidecars = sidecars(cluster, mesh).await?;
        Ok(State {
            home,
            objects,
            sidecars,
        })
    }

    /// When each replica last wrote of `object`.
    pub(crate) fn times(&self, object: &str) -> Times {
        let object = self.objects.readable.get(object);
        let reports = object.into_iter().flat_map(|object| &object.reports);
        reports
            .map(|(replica, report)| (replica.clone(), report.time.clone()))
            .collect()
    }

    /// What stands between the mesh and `goal` for the root of `object`. Replicas must have written since `seen`.
    pub(crate) fn obstacles(&self, goal: Goal, object: &str, seen: Option<&Times>) -> Vec<String> {
        let Some(root) = self.objects.readable.get(object) else {
            return vec![format!("there is no MeshRootCertificate {object}")];
        };
        let mut found = progress::obstacles(goal, Some(root.generation), &root.reports);
        if matches!(goal, Goal::Trusted | Goal::Unused) {
            let proxies = root.reports.values().filter_map(|report| report.proxies);
            let connected: u64 = proxies.map(|count| count.total).sum();
            if connected < self.sidecars {
                found.push(format!(
                    "{} of {} running sidecars are connected to no controller",
                    self.sidecars - connected,
                    self.sidecars
                ));
            }
            for (replica, report) in &root.reports {
                if seen.is_some_and(|seen| seen.get(replica) == Some(&report.time)) {
                    found.push(format!("{replica}: has not reported since this step began"));
                }
            }
        }
        found
    }
}

pub(crate) fn api(cluster: &Cluster, mesh: &Mesh) -> Api<MeshRootCertificate> {
    Api::namespaced(cluster.client.clone(), &mesh.namespace)
}

fn silent(component: &str) -> Report {
    Report {
        component: component.to_owned(),
        problem: "has not reported yet".to_owned(),
        ..Report::default()
    }
}

/// The control plane's pods that run, by name: which component each is of.
async fn replicas(cluster: &Cluster, mesh: &Mesh) -> Result<BTreeMap<String, &'static str>> {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), &mesh.namespace);
    let mut replicas = BTreeMap::new();
    for component in [names::CONTROLLER, names::INJECTOR] {
        let selector = format!("{}={component}", labels::APP);
        let list = pods
            .list(&ListParams::default().labels(&selector))
            .await
            .with_context(|| {
                format!(
                    "Could not list the {component} pods in namespace [{}]",
                    mesh.namespace
                )
            })?;
        let running = list.iter().filter(|pod| runs(pod));
        replicas.extend(running.map(|pod| (pod.name_any(), component)));
    }
    Ok(replicas)
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// How many pods have a sidecar that is up.
async fn sidecars(cluster: &Cluster, mesh: &Mesh) -> Result<u64> {
    let members = cluster.mesh_namespaces(Some(&mesh.name)).await?;
    let mut count = 0;
    for namespace in members {
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &namespace.name_any());
        let mut params = ListParams::default().labels(labels::PROXY_UUID).limit(500);
        loop {
            let page = pods
                .list(&params)
                .await
                .context("Could not list the pods of the mesh")?;
            count += page
                .items
                .iter()
                .filter(|pod| runs(pod) && sidecar_is_up(pod))
                .count() as u64;
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => break,
            }
        }
    }
    Ok(count)
}

fn sidecar_is_up(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses);
    let mut envoy = containers
        .flatten()
        .filter(|container| container.name == names::ENVOY_CONTAINER);
    envoy.any(|container| container.ready)
}

/// What the objects are read against: the controller's own flags.
async fn home(cluster: &Cluster, mesh: &Mesh) -> Result<Home> {
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), &mesh.namespace);
    let deployment = deployments.get(names::CONTROLLER).await.with_context(|| {
        format!(
            "Could not read the Deployment {} in namespace [{}]",
            names::CONTROLLER,
            mesh.namespace
        )
    })?;
    let pod = deployment.spec.and_then(|spec| spec.template.spec);
    let container = pod.and_then(|pod| {
        pod.containers
            .into_iter()
            .find(|container| container.name == names::CONTROLLER)
    });
    let args = container.and_then(|container| container.args).unwrap_or_default();
    read_home(&mesh.namespace, &args)
}

fn read_home(namespace: &str, args: &[String]) -> Result<Home> {
    let flag = |name: &str, default: &str| {
        let prefix = format!("--{name}=");
        let given = args.iter().rev().find_map(|arg| arg.strip_prefix(&prefix));
        given.unwrap_or(default).to_owned()
    };
    let trust_domain = flag("trust-domain", names::CLUSTER_DOMAIN);
    let configured = match flag("certificate-manager", "tresor").as_str() {
        "vault" => Source::Vault {
            protocol: flag("vault-protocol", "http"),
            host: flag("vault-host", "vault.default.svc.cluster.local"),
            port: flag("vault-port", "8200")
                .parse()
                .context("The controller's flag --vault-port is no port")?,
            role: flag("vault-role", "openservicemesh"),
            token: Some(SecretKey {
                name: flag("vault-token-secret-name", ""),
                key: flag("vault-token-secret-key", ""),
            })
            .filter(|token| !token.name.is_empty()),
        },
        "cert-manager" => Source::CertManager {
            issuer: flag("cert-manager-issuer-name", "osm-ca"),
            kind: flag("cert-manager-issuer-kind", "Issuer"),
            group: flag("cert-manager-issuer-group", "cert-manager.io"),
        },
        _ => Source::Tresor {
            secret: flag("ca-bundle-secret-name", names::CA_BUNDLE_SECRET),
        },
    };
    Ok(Home {
        namespace: namespace.to_owned(),
        trust_domain: trust_domain
            .parse()
            .map_err(|error| anyhow!("The controller's flag --trust-domain is malformed: {error}"))?,
        configured,
    })
}

#[cfg(test)]
mod tests {
    use osm_core::certificate::rotation::{Role, progress::Count};

    use super::*;

    #[test]
    fn the_configured_provider_is_read_from_the_controllers_flags() {
        let home = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            read_home("osm-system", &args).unwrap()
        };
        let plain = home(&["--mesh-name=osm"]);
        assert_eq!(
            plain.configured,
            Source::Tresor {
                secret: "osm-ca-bundle".into()
            }
        );
        let vault = home(&[
            "--certificate-manager=vault",
            "--vault-host=v",
            "--vault-port=1",
            "--trust-domain=a.b",
        ]);
        assert_eq!(vault.configured.to_string(), "vault http://v:1 openservicemesh");
        assert_eq!(vault.trust_domain.to_string(), "a.b");
        assert!(read_home("x", &["--trust-domain=A B".to_owned()]).is_err());
    }

    #[test]
    fn sidecars_without_a_controller_and_replicas_without_news_stand_in_the_way() {
        let report = |component: &str| Report {
            component: component.into(),
            generation: 2,
            fingerprint: "ab".into(),
            trusted: true,
            proxies: (component == names::CONTROLLER).then_some(Count { total: 4, behind: 0 }),
            secrets: (component == names::INJECTOR).then_some(Count { total: 5, behind: 0 }),
            settled_seconds: 500,
            time: "now".into(),
            ..Report::default()
        };
        let object = RootObject {
            role: Role::Passive,
            source: Source::Tresor { secret: "x".into() },
            created: None,
            generation: 2,
            reports: [
                ("c".to_owned(), report(names::CONTROLLER)),
                ("i".to_owned(), report(names::INJECTOR)),
            ]
            .into(),
        };
        let mut state = State {
            home: read_home("osm-system", &[]).unwrap(),
            objects: Objects {
                readable: [("new".to_owned(), object)].into(),
                problems: BTreeMap::new(),
            },
            sidecars: 4,
        };
        assert_eq!(state.obstacles(Goal::Trusted, "new", None), Vec::<String>::new());
        let seen = state.times("new");
        assert_eq!(state.obstacles(Goal::Trusted, "new", Some(&seen)).len(), 2);
        state.sidecars = 6;
        assert_eq!(
            state.obstacles(Goal::Trusted, "new", None),
            ["2 of 6 running sidecars are connected to no controller"]
        );
        assert!(state.obstacles(Goal::Trusted, "gone", None)[0].contains("no MeshRootCertificate"));
    }
}
