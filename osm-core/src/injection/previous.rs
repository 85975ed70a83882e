//! A pod that comes in with a sidecar: admitted twice, or copied from a pod of the mesh.
//!
//! Such a pod is brought back to what it was before and injected anew. So it never has two sidecars, and a copy
//! (`kubectl get -o yaml | kubectl create`, `kubectl debug --copy-to`) gets an identity of its own instead of its
//! model's, whose Secret it would otherwise share.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{
    denial::Denial,
    inventory::{CONTAINERS, VOLUMES, containers},
    patch::Editor,
    probe, read,
};
use crate::api::{
    labels,
    names::{BOOTSTRAP_SECRET_PREFIX, BOOTSTRAP_VOLUME, ENVOY_CONTAINER},
};

/// Whether the pod has our sidecar, told by its structure: a volume of our name that is a bootstrap Secret, mounted
/// by a container of our name. Labels and annotations prove nothing, they are lost or copied alone. A pod that has
/// only our names is not ours and is refused later.
pub(super) fn is_injected(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| has_volume(spec) && containers(spec).any(|(_, _, each)| is_envoy(each)))
}

/// Takes the sidecar out; the pod as it was before it.
pub(super) fn remove(pod: Pod, editor: &mut Editor) -> Result<Pod, Denial> {
    let Some(spec) = &pod.spec else { return Ok(pod) };
    let mut places: Vec<(&str, usize)> = containers(spec)
        .filter(|(_, _, container)| CONTAINERS.contains(&container.name.as_str()))
        .map(|(list, index, _)| (list, index))
        .collect();
    let volumes = spec.volumes.iter().flatten().enumerate();
    places.extend(
        volumes
            .filter(|(_, volume)| VOLUMES.contains(&volume.name.as_str()))
            .map(|(index, _)| ("volumes", index)),
    );
    // From the back, so that the places that are left stay right.
    for (list, index) in places.into_iter().rev() {
        editor.remove(&["spec", list, &index.to_string()]);
    }
    editor.remove_label(labels::PROXY_UUID);
    probe::restore(&read(editor.pod())?, editor)?;
    read(editor.pod())
}

fn has_volume(spec: &PodSpec) -> bool {
    spec.volumes
        .iter()
        .flatten()
        .filter(|volume| volume.name == BOOTSTRAP_VOLUME)
        .any(|volume| {
            let secret = volume
                .secret
                .as_ref()
                .and_then(|secret| secret.secret_name.as_deref());
            secret.is_some_and(|name| name.starts_with(BOOTSTRAP_SECRET_PREFIX))
        })
}

fn is_envoy(container: &Container) -> bool {
    let mounts = container.volume_mounts.iter().flatten();
    container.name == ENVOY_CONTAINER && mounts.into_iter().any(|mount| mount.name == BOOTSTRAP_VOLUME)
}
