//! What a pod must not have of its own: the names, ports and user of the sidecar.

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    container::PROXY_UID,
    denial::{Denial, shorten},
    probe::{field, probes},
};
use crate::api::{
    names::{BOOTSTRAP_VOLUME, ENVOY_CONTAINER, HEALTHCHECK_CONTAINER, INIT_CONTAINER, RELAY, RELAY_VOLUME},
    ports,
};

/// The sidecar's containers.
pub(super) const CONTAINERS: [&str; 4] = [ENVOY_CONTAINER, INIT_CONTAINER, HEALTHCHECK_CONTAINER, RELAY];
/// The sidecar's volumes. There are keys in both.
pub(super) const VOLUMES: [&str; 2] = [BOOTSTRAP_VOLUME, RELAY_VOLUME];

/// The ports a sidecar uses in every pod.
const RESERVED_PORTS: [u16; 8] = [
    ports::ENVOY_ADMIN,
    ports::OUTBOUND,
    ports::INBOUND,
    ports::PROMETHEUS,
    ports::LIVENESS_PROBE,
    ports::READINESS_PROBE,
    ports::STARTUP_PROBE,
    ports::HEALTHCHECK,
];

/// The containers of a pod with the list they are in.
pub(super) fn containers(spec: &PodSpec) -> impl Iterator<Item = (&'static str, usize, &Container)> {
    let of = |list: &'static str, containers| {
        Iterator::enumerate(IntoIterator::into_iter(containers))
            .map(move |(index, container)| (list, index, container))
    };
    let init: &[Container] = spec.init_containers.as_deref().unwrap_or_default();
    of("initContainers", init).chain(of("containers", &spec.containers[..]))
}

/// Checks a pod that has no sidecar yet, and will have one with or without a relay.
pub(super) fn check(pod: &Pod, relay: bool) -> Result<(), Denial> {
    let spec = pod
        .spec
        .as_ref()
        .filter(|spec| !spec.containers.is_empty())
        .ok_or(Denial::NoContainers)?;
    let mut volumes = spec.volumes.iter().flatten();
    if let Some(volume) = volumes.find(|volume| VOLUMES.contains(&volume.name.as_str())) {
        return Err(Denial::NameTaken {
            what: "volume",
            name: volume.name.clone(),
        });
    }
    let pod_user = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    for (list, _, container) in containers(spec) {
        let name = container.name.as_str();
        if CONTAINERS.contains(&name) {
            return Err(Denial::NameTaken {
                what: "container",
                name: name.to_owned(),
            });
        }
        if container
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| VOLUMES.contains(&mount.name.as_str()))
        {
            return Err(Denial::VolumeMounted(shorten(name)));
        }
        let user = container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user)
            .or(pod_user);
        if user == Some(PROXY_UID) {
            return Err(Denial::ProxyUser(format!("{list} {:?}", shorten(name))));
        }
        check_ports(container, relay)?;
    }
    Ok(())
}

fn check_ports(container: &Container, relay: bool) -> Result<(), Denial> {
    let declared = container
        .ports
        .iter()
        .flatten()
        .map(|port| ("a port", port.container_port));
    let probed = probes(container).filter_map(|(kind, probe)| Some((field(kind), number(probe)?)));
    for (place, port) in declared.chain(probed) {
        let mut reserved = RESERVED_PORTS.iter().chain(relay.then_some(&ports::RELAY));
        if reserved.any(|reserved| i32::from(*reserved) == port) {
            let place = format!("{place} of container {:?}", shorten(&container.name));
            return Err(Denial::PortTaken { place, port });
        }
    }
    Ok(())
}

/// The port a probe asks at the pod's own address, if it is given by number.
fn number(probe: &Probe) -> Option<i32> {
    let http = probe
        .http_get
        .as_ref()
        .filter(|http| http.host.is_none())
        .map(|http| &http.port);
    let tcp = probe
        .tcp_socket
        .as_ref()
        .filter(|tcp| tcp.host.is_none())
        .map(|tcp| &tcp.port);
    match http.or(tcp) {
        Some(IntOrString::Int(port)) => Some(*port),
        Some(IntOrString::String(_)) => None,
        None => probe.grpc.as_ref().map(|grpc| grpc.port),
    }
}
