//! Asking the cluster and the replicas: a fixed number of lists, and one page of each replica, all at once.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node as KubeNode, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams};
use kube::{Resource, ResourceExt};
use osm_core::api::{MeshConfig, labels, names, ports};
use osm_core::certificate::TrustBundle;
use osm_core::status::{PROXIES_PAGE, Proxies, Replica, STATUS_PAGE, UNINJECTED_PAGE, Uninjected};
use serde::de::DeserializeOwned;

use super::Scope;
use super::facts::{
    Answer, Asked, Autoscaler, Budget, Component, Facts, Instance, Labelled, Node, Rollout, Webhook,
};
use super::outage::service_lifetime;
use crate::cluster::{Cluster, Mesh, chain, is_ready, takes_pods};
use crate::forward;

/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Where nodes keep their Leases.
const NODE_LEASES: &str = "kube-node-lease";
/// Of a node: its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Asks everything that is judged.
pub(crate) async fn gather(cluster: &Cluster, mesh: &Mesh, scope: Scope) -> Facts {
    let client = || cluster.client.clone();
    let namespace = mesh.namespace.as_str();
    let everything = ListParams::default();
    let ours = ListParams::default().labels(&format!(
        "{} in ({},{})",
        labels::APP,
        names::CONTROLLER,
        names::INJECTOR
    ));
    let namespaces_api = Api::<Namespace>::all(client());
    let configs = Api::<MeshConfig>::namespaced(client(), namespace);
    let (deployments, pods, budgets, scalers, nodes, leases, namespaces, mutating, validating, config) = tokio::join!(
        list(Api::<Deployment>::namespaced(client(), namespace), &ours),
        list(Api::<Pod>::namespaced(client(), namespace), &ours),
        list(
            Api::<PodDisruptionBudget>::namespaced(client(), namespace),
            &everything
        ),
        list(
            Api::<HorizontalPodAutoscaler>::namespaced(client(), namespace),
            &everything
        ),
        list(Api::<KubeNode>::all(client()), &everything),
        list(Api::<Lease>::namespaced(client(), NODE_LEASES), &everything),
        within(namespaces_api.list_metadata(&everything)),
        list(Api::<MutatingWebhookConfiguration>::all(client()), &everything),
        list(Api::<ValidatingWebhookConfiguration>::all(client()), &everything),
        within(configs.get_opt(names::MESH_CONFIG)),
    );
    let instances = match pods {
        Ok(pods) => Ok(instances(cluster, namespace, pods).await),
        Err(error) => Err(error),
    };
    let controllers: Vec<String> = running(&instances, names::CONTROLLER);
    let proxies = if scope.proxy {
        forward::ask_all::<Proxies>(cluster, namespace, &controllers, ports::DEBUG, PROXIES_PAGE).await
    } else {
        Vec::new()
    };
    let component = |name: &'static str, key| Component {
        name,
        key,
        rollout: deployments.clone().and_then(|all| rollout(&all, name)),
        replicas: instances.clone().map(|all| {
            let own = all.into_iter().filter(|(component, _)| component == name);
            own.map(|(_, instance)| instance).collect()
        }),
        budget: budgets
            .clone()
            .map(|all| all.iter().find_map(|each| budget(each, name))),
        autoscaler: scalers
            .clone()
            .map(|all| all.iter().find_map(|each| autoscaler(each, name))),
    };
    let components = vec![
        component(names::CONTROLLER, "osmController"),
        component(names::INJECTOR, "injector"),
    ];
    let uninjected = uninjected(cluster, namespace, &components).await;
    Facts {
        mesh: mesh.name.clone(),
        namespace: mesh.namespace.clone(),
        version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        now_millis: Timestamp::now().as_millisecond(),
        minor: cluster.minor,
        components,
        nodes: nodes.map(|nodes| self::nodes(&nodes, &leases.unwrap_or_default())),
        namespaces: namespaces.map(|list| list.items.iter().map(labelled).collect()),
        webhooks: mutating.and_then(|mutating| Ok(webhooks(namespace, &mutating, &validating?))),
        lifetime: config.map(|config| config.as_ref().map(service_lifetime)),
        uninjected,
        proxies,
    }
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Asked<T> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!(
            "the API server did not answer within {} s",
            ANSWER.as_secs()
        )),
    }
}

async fn list<K>(api: Api<K>, params: &ListParams) -> Asked<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    within(api.list(params)).await.map(|list| list.items)
}

/// The replicas with their components, each with what it says.
async fn instances(cluster: &Cluster, namespace: &str, pods: Vec<Pod>) -> Vec<(String, Instance)> {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
    };
    let mut asked = tokio::task::JoinSet::new();
    for pod in pods.into_iter().filter(|pod| !ended(pod)) {
        let (cluster, namespace) = (cluster.clone(), namespace.to_owned());
        asked.spawn(async move {
            let name = pod.name_any();
            let asked_millis = Timestamp::now().as_millisecond();
            let answer =
                forward::ask::<Replica>(&cluster, &namespace, &name, ports::ADMIN, STATUS_PAGE).await;
            let answered_millis = Timestamp::now().as_millisecond();
            let instance = Instance {
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                ready: is_ready(&pod),
                answer: answer.map(|replica| Answer {
                    replica,
                    asked_millis,
                    answered_millis,
                }),
                pod: name,
            };
            (
                pod.labels().get(labels::APP).cloned().unwrap_or_default(),
                instance,
            )
        });
    }
    let mut instances = asked.join_all().await;
    instances.sort_by(|(_, one), (_, other)| one.pod.cmp(&other.pod));
    instances
}

fn running(instances: &Asked<Vec<(String, Instance)>>, component: &str) -> Vec<String> {
    let own = instances.iter().flatten().filter(|(name, _)| name == component);
    own.map(|(_, instance)| instance.pod.clone()).collect()
}

/// The pods that lack their sidecar, from the controller that knows them, if there are any.
async fn uninjected(cluster: &Cluster, namespace: &str, components: &[Component]) -> Vec<Uninjected> {
    let instances = components
        .iter()
        .filter_map(|component| component.replicas.as_ref().ok())
        .flatten();
    let knows = |instance: &&Instance| {
        let answer = instance.answer.as_ref();
        answer.is_ok_and(|answer| answer.replica.uninjected.is_some_and(|count| count > 0))
    };
    let Some(leader) = instances.into_iter().find(knows) else {
        return Vec::new();
    };
    let asked = forward::ask::<Option<Vec<Uninjected>>>(
        cluster,
        namespace,
        &leader.pod,
        ports::DEBUG,
        UNINJECTED_PAGE,
    );
    // Their number is known all the same.
    asked.await.ok().flatten().unwrap_or_default()
}

fn rollout(deployments: &[Deployment], name: &str) -> Asked<Rollout> {
    let deployment = deployments
        .iter()
        .find(|deployment| deployment.metadata.name.as_deref() == Some(name))
        .ok_or_else(|| format!("there is no Deployment {name}"))?;
    let (spec, status) = (
        deployment.spec.as_ref(),
        deployment.status.clone().unwrap_or_default(),
    );
    let containers = spec
        .and_then(|spec| spec.template.spec.as_ref())
        .map(|spec| &spec.containers);
    let requests_cpu = containers.into_iter().flatten().all(|container| {
        let requests = container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        requests.is_some_and(|requests| requests.contains_key("cpu"))
    });
    Ok(Rollout {
        desired: spec.and_then(|spec| spec.replicas).unwrap_or(1),
        updated: status.updated_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
        requests_cpu,
    })
}

fn budget(budget: &PodDisruptionBudget, component: &str) -> Option<Budget> {
    let selector = budget.spec.as_ref()?.selector.as_ref()?.match_labels.as_ref()?;
    if selector.get(labels::APP).map(String::as_str) != Some(component) {
        return None;
    }
    let status = budget.status.clone().unwrap_or_default();
    Some(Budget {
        name: budget.name_any(),
        expected: status.expected_pods,
        healthy: status.current_healthy,
        needed: status.desired_healthy,
        allowed: status.disruptions_allowed,
    })
}

fn autoscaler(scaler: &HorizontalPodAutoscaler, component: &str) -> Option<Autoscaler> {
    let spec = scaler.spec.as_ref()?;
    if spec.scale_target_ref.name != component {
        return None;
    }
    let status = scaler.status.clone().unwrap_or_default();
    let cpu = spec.metrics.iter().flatten().find_map(|metric| {
        let resource = metric
            .resource
            .as_ref()
            .filter(|resource| resource.name == "cpu")?;
        resource.target.average_utilization
    });
    let idle = status.conditions.iter().flatten().find(|condition| {
        matches!(condition.type_.as_str(), "ScalingActive" | "AbleToScale") && condition.status == "False"
    });
    Some(Autoscaler {
        name: scaler.name_any(),
        min: spec.min_replicas.unwrap_or(1),
        max: spec.max_replicas,
        current: status.current_replicas.unwrap_or(0),
        cpu,
        idle: idle.map(|condition| {
            condition
                .message
                .clone()
                .or(condition.reason.clone())
                .unwrap_or_default()
        }),
    })
}

fn nodes(nodes: &[KubeNode], leases: &[Lease]) -> Vec<Node> {
    let node = |node: &KubeNode| {
        let name = node.name_any();
        let lease = leases
            .iter()
            .find(|lease| lease.metadata.name.as_deref() == Some(name.as_str()));
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        Node {
            zone: node.labels().get(ZONE).cloned(),
            takes_pods: takes_pods(node),
            ready: conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            renewed_millis: renewed.map(|time| time.0.as_millisecond()),
            name,
        }
    };
    nodes.iter().map(node).collect()
}

fn labelled<K: Resource>(namespace: &K) -> Labelled {
    Labelled {
        name: namespace.name_any(),
        labels: namespace.labels().clone(),
    }
}

/// The webhooks that are served by this mesh.
fn webhooks(
    namespace: &str,
    mutating: &[MutatingWebhookConfiguration],
    validating: &[ValidatingWebhookConfiguration],
) -> Vec<Webhook> {
    let ours = |client: &WebhookClientConfig| {
        let service = client.service.as_ref();
        service.is_some_and(|service| {
            service.namespace == namespace
                && [names::INJECTOR, names::VALIDATOR].contains(&service.name.as_str())
        })
    };
    let mut found = Vec::new();
    for configuration in mutating {
        let hooks = configuration.webhooks.iter().flatten();
        found.extend(
            hooks
                .filter(|hook| ours(&hook.client_config))
                .map(|hook| Webhook {
                    name: hook.name.clone(),
                    configuration: format!("MutatingWebhookConfiguration {}", configuration.name_any()),
                    roots: roots(&hook.client_config),
                    namespaces: hook.namespace_selector.clone().unwrap_or_default(),
                    fails: hook.failure_policy.as_deref() != Some("Ignore"),
                    pods: about_pods(hook.rules.as_deref()),
                }),
        );
    }
    for configuration in validating {
        let hooks = configuration.webhooks.iter().flatten();
        found.extend(
            hooks
                .filter(|hook| ours(&hook.client_config))
                .map(|hook| Webhook {
                    name: hook.name.clone(),
                    configuration: format!("ValidatingWebhookConfiguration {}", configuration.name_any()),
                    roots: roots(&hook.client_config),
                    namespaces: hook.namespace_selector.clone().unwrap_or_default(),
                    fails: hook.failure_policy.as_deref() != Some("Ignore"),
                    pods: about_pods(hook.rules.as_deref()),
                }),
        );
    }
    found
}

fn about_pods(rules: Option<&[RuleWithOperations]>) -> bool {
    let resources = rules
        .into_iter()
        .flatten()
        .flat_map(|rule| rule.resources.iter().flatten());
    resources
        .into_iter()
        .any(|resource| matches!(resource.as_str(), "pods" | "*"))
}

fn roots(client: &WebhookClientConfig) -> Asked<Vec<String>> {
    let bundle = client.ca_bundle.as_ref().filter(|bundle| !bundle.0.is_empty());
    let bundle = bundle.ok_or("there is no CA bundle")?;
    let text = std::str::from_utf8(&bundle.0).map_err(|_| "the CA bundle is no text")?;
    let bundle =
        TrustBundle::from_pem(text).map_err(|error| format!("the CA bundle cannot be read: {error}"))?;
    Ok(bundle.roots().iter().map(|root| root.fingerprint()).collect())
}
