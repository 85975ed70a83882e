//! From the pod a user wants to the pod with its sidecar.
//!
//! Owns the decision, the patch, and the life of the pod's bootstrap Secret. Must not issue certificates or talk to
//! Kubernetes: it says what is to be written, the injector writes it. Invariants: the result is a function of the
//! admission request and the settings alone, so that a repeated or concurrent delivery gives identical bytes; a pod
//! comes out with exactly one sidecar, whatever it came in with; every refusal says what is wrong and what to do.

mod bystander;
mod container;
mod decision;
mod denial;
mod exclusion;
mod inventory;
mod patch;
mod previous;
mod probe;
mod secret;
mod upkeep;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use uuid::Uuid;

pub use bystander::Bystander;
pub use decision::{Decision, Home, NamespaceView, SkipReason, decide};
pub use denial::Denial;
pub use secret::{BootstrapSecret, ForeignSecret, bootstrap_account, trust_bundle_tag};
pub use upkeep::{Action, PodView, SecretView, Upkeep, UpkeepRules, lag};

use crate::{
    api::{annotations, labels, mesh_config::MeshConfigSpec, names, ports},
    envoy::bootstrap::{self, Bootstrap},
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain, is_dns_label, is_dns_subdomain},
};
use exclusion::Exclusions;
use patch::Editor;

/// The namespace of the uuids that are made from admission requests. Never to change: repeated deliveries of one
/// request to an old and a new replica must agree.
const REQUEST_NAMESPACE: Uuid = Uuid::from_u128(0x6f73_6d00_0000_5000_8000_696e_6a65_6374);

/// Largest bootstrap configuration, in bytes. Kubernetes' limit for a whole Secret is 1 MiB.
const MAX_BOOTSTRAP: usize = 900_000;

/// What is asked: one pod, by one admission request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The admission request's uid, equal for repeated deliveries of one request.
    pub uid: &'a str,
    /// The namespace the pod is created in, as the request says; the pod itself may not.
    pub namespace: &'a str,
    /// The pod, as it stands in the request.
    pub pod: &'a Value,
}

/// What holds for all pods.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The mesh's name: the value of the namespace label.
    pub mesh_name: String,
    /// The namespace of the control plane.
    pub control_plane_namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Image of the Envoy container, unless MeshConfig names one.
    pub envoy_image: String,
    /// Image of the init container, unless MeshConfig names one. It must have `osm-sidecar` in its `PATH`.
    pub init_image: String,
    /// Image of the probe container. It must have `osm-sidecar` in its `PATH`.
    pub healthcheck_image: String,
    /// `imagePullPolicy` of the init and probe containers; Kubernetes' own default when absent.
    pub pull_policy: Option<String>,
    /// How the cluster can order containers.
    pub start_order: StartOrder,
    /// The address Envoy's probe listeners bind, see [`Bootstrap::bind`].
    pub bind: std::net::IpAddr,
    /// Bootstrap configurations of pods that came before.
    pub templates: bootstrap::Templates,
}

/// How the sidecar runs beside the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartOrder {
    /// A native sidecar: an init container with `restartPolicy: Always` (Kubernetes 1.29).
    ///
    /// It starts, and is ready, before the application's own init containers, which therefore already have the
    /// network as the mesh gives it; it ends after the application's containers; and a Job ends with its own containers.
    NativeSidecar,
    /// An ordinary container: it starts and ends together with the application.
    Container {
        /// Whether Kubernetes knows the `sleep` hook (1.30), with which Envoy stays while the application ends.
        sleep_hook: bool,
    },
}

impl StartOrder {
    /// What a Kubernetes of version `major.minor` can do.
    pub fn of_version(major: u32, minor: u32) -> Self {
        if (major, minor) >= (1, 29) {
            Self::NativeSidecar
        } else {
            Self::Container { sleep_hook: false }
        }
    }
}

/// The answer to a request that is not denied.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The pod stays as it is.
    Unchanged {
        /// Why.
        reason: SkipReason,
        /// What the user should know.
        warnings: Vec<String>,
    },
    /// The pod gets a sidecar.
    Injected(Box<Injection>),
}

/// What makes a pod one of the mesh.
#[derive(Debug, Clone)]
pub struct Injection {
    /// Who the proxy is: what its certificate must say.
    pub proxy: ProxyIdentity,
    /// What to change in the pod.
    pub patch: json_patch::Patch,
    /// The pod as it will be.
    pub pod: Value,
    /// The bootstrap configuration, for the pod's Secret.
    pub bootstrap: String,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The uuid of the proxy that a request brings about.
///
/// Derived, so that a request delivered twice, or to two replicas, has one proxy, one Secret and one patch.
pub fn proxy_uuid(request_uid: &str, namespace: &str) -> Uuid {
    let name = format!("{namespace}/{request_uid}");
    #[cfg(feature = "sabotage")]
    let name = if crate::sabotage::Fault::OwnNames.is_on() {
        format!("{name}/{}", crate::sabotage::noise())
    } else {
        name
    };
    Uuid::new_v5(&REQUEST_NAMESPACE, name.as_bytes())
}

/// The name of a proxy's bootstrap Secret.
pub fn secret_name(proxy: Uuid) -> String {
    format!("{}{proxy}", names::BOOTSTRAP_SECRET_PREFIX)
}

/// Answers one request. `namespace` is what is known of the request's namespace, if it exists.
///
/// # Errors
/// [`Denial`] when the pod asks for something impossible, or cannot be what it says and have a sidecar.
pub fn inject(
    request: Request<'_>,
    namespace: Option<NamespaceView<'_>>,
    config: &MeshConfigSpec,
    settings: &Settings,
) -> Result<Outcome, Denial> {
    let original = read(request.pod)?;
    let namespace = match decide(&original, request.namespace, namespace, settings)? {
        Decision::Skip(reason) => {
            let warnings = reason.warning().into_iter().collect();
            return Ok(Outcome::Unchanged { reason, warnings });
        }
        Decision::Inject(namespace) => namespace,
    };
    let proxy = identify(request, &original)?;

    let mut editor = Editor::new(request.pod.clone());
    let injected = previous::is_injected(&original);
    let pod = if injected {
        previous::remove(original, &mut editor)?
    } else {
        original
    };
    let relay = decision::keeps_config(&pod, namespace, config)?;
    inventory::check(&pod, relay)?;
    let (exclusions, mut warnings) = Exclusions::of(&pod, &config.traffic)?;
    let probes = probe::rewrite(&pod, &mut editor)?;

    let parts = container::Parts {
        proxy: &proxy,
        config,
        settings,
        exclusions: &exclusions,
        probe_ports: &probes.ports(),
        helper_ports: &probes.helper_ports,
        relay,
        grace: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds),
    };
    editor.set_label(labels::PROXY_UUID, &proxy.uuid.to_string());
    if namespace.is_scraped()? {
        editor.set_annotation(annotations::PROMETHEUS_SCRAPE, "true");
        editor.set_annotation(annotations::PROMETHEUS_PORT, &ports::PROMETHEUS.to_string());
        editor.set_annotation(annotations::PROMETHEUS_PATH, "/stats/prometheus");
    }
    editor.append("volumes", volume(proxy.uuid));
    if relay {
        editor.append("volumes", relay_volume());
    }
    place(&mut editor, &parts);
    if matches!(settings.start_order, StartOrder::Container { .. }) && ends_by_itself(&pod) {
        warnings.push(
            "this pod is meant to end, but its sidecar does not on this cluster: native sidecars need Kubernetes 1.29"
                .to_owned(),
        );
    }

    let bootstrap = settings.templates.render(&Bootstrap {
        uuid: proxy.uuid,
        trust_domain: &settings.trust_domain,
        controller_namespace: &settings.control_plane_namespace,
        probes: &probes.by_envoy,
        bind: settings.bind,
        directory: bootstrap::DIRECTORY,
        relay: relay.then_some(bootstrap::RELAY_DIRECTORY),
    });
    if bootstrap.len() > MAX_BOOTSTRAP {
        return Err(Denial::TooManyProbes {
            bytes: bootstrap.len(),
            limit: MAX_BOOTSTRAP,
        });
    }
    let (pod, patch) = editor.finish();
    Ok(Outcome::Injected(Box::new(Injection {
        proxy,
        patch,
        pod,
        bootstrap,
        warnings,
    })))
}

/// The sidecar's containers, where they belong.
fn place(editor: &mut Editor, parts: &container::Parts<'_>) {
    let helper = (!parts.helper_ports.is_empty()).then(|| parts.healthcheck());
    let relay = parts.relay.then(|| parts.relay());
    match parts.settings.start_order {
        StartOrder::NativeSidecar => {
            editor.insert_first("initContainers", parts.redirect());
            let sidecars = relay.into_iter().chain([parts.envoy()]).chain(helper);
            for (index, container) in sidecars.enumerate() {
                editor.insert("initContainers", index + 1, container);
            }
        }
        // Redirection comes last here: until Envoy runs, redirected connections lead nowhere, and the application's
        // init containers would have no network.
        StartOrder::Container { .. } => {
            editor.append("initContainers", parts.redirect());
            for container in helper.into_iter().chain(relay).chain([parts.envoy()]) {
                editor.append("containers", container);
            }
        }
    }
}

/// The bootstrap Secret, mounted.
///
/// Its files belong to root and Envoy runs as another user, so they must be readable by all: `fsGroup`, the other
/// way, would change the owner of every volume of the application. What protects them is that no container but Envoy
/// mounts the volume (a pod that mounts it elsewhere is denied), and that it is memory-backed.
fn volume(proxy: Uuid) -> Value {
    json!({
        "name": names::BOOTSTRAP_VOLUME,
        "secret": { "secretName": secret_name(proxy), "defaultMode": 0o444 },
    })
}

/// Room for what the relay keeps: memory, because there are keys in it and because it must not outlive the pod. The
/// relay stays below the limit by itself (`osm_core::relay::Limits`).
fn relay_volume() -> Value {
    json!({ "name": names::RELAY_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "48Mi" } })
}

fn read(pod: &Value) -> Result<Pod, Denial> {
    serde_json::from_value(pod.clone()).map_err(|error| Denial::Malformed(error.to_string()))
}

fn identify(request: Request<'_>, pod: &Pod) -> Result<ProxyIdentity, Denial> {
    if request.uid.is_empty() || request.uid.len() > 253 {
        return Err(Denial::Malformed(
            "the admission request has no usable uid".to_owned(),
        ));
    }
    if !is_dns_label(request.namespace) {
        return Err(Denial::Malformed(
            "the admission request has no usable namespace".to_owned(),
        ));
    }
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    // The ServiceAccount admission plugin has filled it in, unless the cluster runs without.
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    if !is_dns_subdomain(account) {
        return Err(Denial::Malformed(
            "spec.serviceAccountName is not a name".to_owned(),
        ));
    }
    Ok(ProxyIdentity {
        uuid: proxy_uuid(request.uid, request.namespace),
        service: ServiceIdentity::new(request.namespace, account),
    })
}

fn ends_by_itself(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    policy.is_some_and(|policy| policy != "Always")
}

#[cfg(test)]
mod tests;
