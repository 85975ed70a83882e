//! Whether a pod gets a sidecar.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::{
    Settings,
    denial::{Denial, shorten},
};
use crate::api::{annotations, labels, mesh_config::MeshConfigSpec};

/// What is known of a namespace.
#[derive(Debug, Clone, Copy)]
pub struct NamespaceView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
}

/// Which mesh is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Home<'a> {
    /// The mesh's name: the value of the namespace label.
    pub mesh_name: &'a str,
    /// The namespace of the control plane.
    pub control_plane_namespace: &'a str,
}

/// The decision.
#[derive(Debug, Clone, Copy)]
pub enum Decision<'a> {
    /// A sidecar, in this namespace.
    Inject(NamespaceView<'a>),
    /// None.
    Skip(SkipReason),
}

/// Why a pod gets no sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// It uses the node's network: redirection would be the node's.
    HostNetwork,
    /// It is in the control plane's namespace or one of Kubernetes' own.
    SystemNamespace,
    /// Its namespace is not in this mesh.
    NotMonitored,
    /// Its namespace has the label `openservicemesh.io/ignore`.
    Ignored,
    /// Its annotation, or its namespace's, says so, or none says anything.
    NotEnabled,
    /// It runs on Windows, where there is no sidecar.
    Windows,
}

impl SkipReason {
    /// What to tell the user, where a sidecar might have been expected.
    pub(super) fn warning(self) -> Option<String> {
        (self == Self::Windows).then(|| {
            "this pod gets no sidecar because it runs on Windows: the mesh neither protects nor controls its traffic"
                .to_owned()
        })
    }
}

/// Whether the sidecar's last good configuration is to be kept: as the pod's annotation says, or its namespace's, or
/// MeshConfig.
pub(super) fn keeps_config(
    pod: &Pod,
    namespace: NamespaceView<'_>,
    config: &MeshConfigSpec,
) -> Result<bool, Denial> {
    let by_pod = match &pod.metadata.annotations {
        Some(of_pod) => switch(of_pod, annotations::KEEP_LAST_GOOD_CONFIG, || {
            "the pod".to_owned()
        })?,
        None => None,
    };
    let by_namespace = switch(namespace.annotations, annotations::KEEP_LAST_GOOD_CONFIG, || {
        format!("namespace {}", namespace.name)
    })?;
    Ok(by_pod
        .or(by_namespace)
        .unwrap_or(config.sidecar.keep_last_good_config))
}

impl NamespaceView<'_> {
    /// Whether the namespace's pods are to be scraped.
    pub(super) fn is_scraped(&self) -> Result<bool, Denial> {
        let metrics = switch(self.annotations, annotations::METRICS, || {
            format!("namespace {}", self.name)
        })?;
        Ok(metrics == Some(true))
    }
}

/// Decides. Host network first, since such a pod is never touched; then the namespace; then the annotations, where
/// the pod's goes before the namespace's and a value that means nothing is an error in either place.
///
/// # Errors
/// [`Denial`] for an annotation with another value than the six that exist, for a namespace that is not known, and
/// for a Windows pod that asks for a sidecar.
pub fn decide<'a>(
    pod: &Pod,
    namespace_name: &str,
    namespace: Option<NamespaceView<'a>>,
    settings: &Settings,
) -> Result<Decision<'a>, Denial> {
    let home = Home {
        mesh_name: &settings.mesh_name,
        control_plane_namespace: &settings.control_plane_namespace,
    };
    decide_for(Candidate::of(pod), namespace_name, namespace, home)
}

/// What the decision reads of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    /// Whether it uses the node's network.
    pub(super) host_network: bool,
    /// Whether it runs on Windows.
    pub(super) windows: bool,
    /// Its annotation, if it has one.
    pub(super) injection: Option<&'a str>,
}

impl<'a> Candidate<'a> {
    pub(super) fn of(pod: &'a Pod) -> Self {
        let spec = pod.spec.as_ref();
        let own = pod.metadata.annotations.as_ref();
        Self {
            host_network: spec.is_some_and(|spec| spec.host_network == Some(true)),
            windows: spec.is_some_and(is_windows),
            injection: own
                .and_then(|map| map.get(annotations::SIDECAR_INJECTION))
                .map(String::as_str),
        }
    }
}

/// As [`decide`], of a mesh whose other settings do not matter.
pub(super) fn decide_for<'a>(
    candidate: Candidate<'_>,
    namespace_name: &str,
    namespace: Option<NamespaceView<'a>>,
    home: Home<'_>,
) -> Result<Decision<'a>, Denial> {
    if candidate.host_network {
        return Ok(Decision::Skip(SkipReason::HostNetwork));
    }
    let system = ["kube-system", "kube-public", home.control_plane_namespace];
    if system.contains(&namespace_name) {
        return Ok(Decision::Skip(SkipReason::SystemNamespace));
    }
    let namespace = namespace.ok_or_else(|| Denial::NamespaceUnknown(shorten(namespace_name)))?;
    if namespace.labels.get(labels::MONITORED_BY).map(String::as_str) != Some(home.mesh_name) {
        return Ok(Decision::Skip(SkipReason::NotMonitored));
    }
    if namespace.labels.contains_key(labels::IGNORE) {
        return Ok(Decision::Skip(SkipReason::Ignored));
    }

    let by_pod = meaning(candidate.injection, annotations::SIDECAR_INJECTION, || {
        "the pod".to_owned()
    })?;
    let by_namespace = switch(namespace.annotations, annotations::SIDECAR_INJECTION, || {
        format!("namespace {}", namespace.name)
    })?;
    if !by_pod.or(by_namespace).unwrap_or(false) {
        return Ok(Decision::Skip(SkipReason::NotEnabled));
    }
    if candidate.windows {
        return match by_pod {
            Some(true) => Err(Denial::Windows),
            _ => Ok(Decision::Skip(SkipReason::Windows)),
        };
    }
    Ok(Decision::Inject(namespace))
}

fn is_windows(spec: &PodSpec) -> bool {
    let selected = spec
        .node_selector
        .as_ref()
        .and_then(|selector| selector.get("kubernetes.io/os"));
    selected.is_some_and(|os| os == "windows") || spec.os.as_ref().is_some_and(|os| os.name == "windows")
}

/// An annotation that switches something: absent, on or off.
fn switch(
    annotations: &BTreeMap<String, String>,
    key: &'static str,
    holder: impl Fn() -> String,
) -> Result<Option<bool>, Denial> {
    meaning(annotations.get(key).map(String::as_str), key, holder)
}

/// What the value of such an annotation means.
fn meaning(
    value: Option<&str>,
    key: &'static str,
    holder: impl Fn() -> String,
) -> Result<Option<bool>, Denial> {
    let Some(value) = value else {
        return Ok(None);
    };
    match value.to_ascii_lowercase().as_str() {
        "enabled" | "yes" | "true" => Ok(Some(true)),
        "disabled" | "no" | "false" => Ok(Some(false)),
        _ => Err(Denial::Annotation {
            holder: holder(),
            key,
            value: shorten(value),
            expected: "use enabled, yes or true, or disabled, no or false".to_owned(),
        }),
    }
}
