//! Why a pod is refused.

/// Why a pod cannot be created in the mesh, and what to do about it. What it quotes is shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The request or the pod has a shape that Kubernetes itself would not send.
    #[error("the pod cannot be read: {0}")]
    Malformed(String),
    /// An annotation has a value that means nothing.
    #[error("annotation {key} of {holder} is {value:?}: {expected}")]
    Annotation {
        /// `the pod`, or `namespace <name>`.
        holder: String,
        /// The annotation.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// The namespace does not exist, or not yet.
    #[error("namespace {0} is not known: create it first; if it was created just now, try again")]
    NamespaceUnknown(String),
    /// Sidecars cannot run there.
    #[error(
        "the pod asks for a sidecar and for a Windows node, where the mesh has none: remove the annotation {key} or \
         the node selector",
        key = crate::api::annotations::SIDECAR_INJECTION
    )]
    Windows,
    /// There is nothing to put a sidecar beside.
    #[error("the pod has no containers: add one to spec.containers")]
    NoContainers,
    /// A name the mesh needs is taken.
    #[error("the {what} name {name:?} is reserved for the mesh's sidecar: rename the pod's {what}")]
    NameTaken {
        /// `container` or `volume`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The bootstrap Secret holds the sidecar's key.
    #[error("container {0:?} mounts the sidecar's own volume: remove the mount")]
    VolumeMounted(String),
    /// A port the mesh needs is taken.
    #[error(
        "{place} uses port {port}, which the mesh's sidecar uses (15000, 15001, 15003, 15010, 15901-15904, and 15905 in \
         pods whose configuration is kept): use another"
    )]
    PortTaken {
        /// Which field of which container.
        place: String,
        /// The port.
        port: i32,
    },
    /// The application would pass for the sidecar.
    #[error(
        "{0} runs as user {uid}, the sidecar's own: its traffic would bypass the mesh; use another runAsUser",
        uid = super::container::PROXY_UID
    )]
    ProxyUser(String),
    /// A probe that another injection left, without what is needed to undo it.
    #[error(
        "the {kind} probe of container {container:?} is {problem}: remove the probe or give the original one"
    )]
    Probe {
        /// The container.
        container: String,
        /// Which probe.
        kind: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// The configuration would not fit into a Secret.
    #[error(
        "the probes of the pod's containers need {bytes} bytes of configuration, more than the {limit} that fit into \
         a Secret: use fewer containers with HTTP probes"
    )]
    TooManyProbes {
        /// What they need.
        bytes: usize,
        /// What there is.
        limit: usize,
    },
}

/// The first characters of a user's text.
pub(super) fn shorten(text: &str) -> String {
    const LIMIT: usize = 100;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain("...".chars()).collect()
}
