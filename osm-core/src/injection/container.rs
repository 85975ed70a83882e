//! The containers of the sidecar.
//!
//! Invariants: Envoy runs as its own user, which redirection lets out, without any capability and on a read-only root;
//! the init container alone may change the pod's network, and is gone before the application starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle,
        LifecycleHandler, ObjectFieldSelector, Probe, ResourceRequirements, SeccompProfile, SecurityContext,
        SleepAction, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use serde_json::Value;

use super::{Settings, StartOrder, exclusion::Exclusions};
use crate::{
    api::{
        mesh_config::{LocalProxyMode, MeshConfigSpec},
        names::{
            self, BOOTSTRAP_VOLUME, ENVOY_CONTAINER, HEALTHCHECK_CONTAINER, INIT_CONTAINER, RELAY,
            RELAY_VOLUME,
        },
        ports,
    },
    envoy::bootstrap::{self, BOOTSTRAP, DIRECTORY, ProbeKind, READY_PATH, RELAY_DIRECTORY},
    identity::ProxyIdentity,
};

/// The user Envoy runs as; redirection lets its traffic pass. No container of the application may run as it.
pub(super) const PROXY_UID: i64 = 1500;
/// The user of the probe container.
const HELPER_UID: i64 = 1501;
/// Threads of Envoy where its CPU limit does not say otherwise. Its own default, one a core of the node, costs memory
/// for each and serves nobody.
const WORKERS: u32 = 2;
/// How long connections stay whose filter chain has changed or gone, in seconds: a change of policy cuts what it revokes
/// no later than this, and what it only touches is asked to reconnect (`GOAWAY`, `connection: close`) until then.
/// Envoy's default is ten minutes.
const DRAIN: u32 = 30;
/// How long Envoy stays behind the application where it cannot be told to end last, in seconds.
const LINGER: i64 = 15;

/// What the containers are made from.
pub(super) struct Parts<'a> {
    pub(super) proxy: &'a ProxyIdentity,
    pub(super) config: &'a MeshConfigSpec,
    pub(super) settings: &'a Settings,
    pub(super) exclusions: &'a Exclusions,
    pub(super) probe_ports: &'a [ProbeKind],
    pub(super) helper_ports: &'a BTreeSet<u16>,
    pub(super) relay: bool,
    pub(super) grace: Option<i64>,
}

impl Parts<'_> {
    /// `osm-init`: redirects the pod's traffic to Envoy, then ends.
    pub(super) fn redirect(&self) -> Value {
        let privileged = self.config.sidecar.enable_privileged_init_container;
        value(Container {
            name: INIT_CONTAINER.to_owned(),
            image: Some(either(
                &self.config.sidecar.init_container_image,
                &self.settings.init_image,
            )),
            image_pull_policy: self.settings.pull_policy.clone(),
            command: Some(vec!["osm-sidecar".to_owned()]),
            args: Some(self.redirect_arguments()),
            env: Some(vec![field("POD_IP", "status.podIP")]),
            resources: self.init_resources(),
            security_context: Some(SecurityContext {
                run_as_user: Some(0),
                run_as_group: Some(0),
                run_as_non_root: Some(false),
                privileged: Some(privileged),
                // Kubernetes does not allow it to be off for a privileged container.
                allow_privilege_escalation: Some(privileged),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities {
                    // NET_RAW is what the legacy iptables opens its socket with.
                    add: Some(vec!["NET_ADMIN".to_owned(), "NET_RAW".to_owned()]),
                    drop: Some(vec!["ALL".to_owned()]),
                }),
                seccomp_profile: Some(seccomp()),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn redirect_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["redirect".to_owned(), format!("--proxy-uid={PROXY_UID}")];
        let mut list = |flag: &str, entries: String| {
            if !entries.is_empty() {
                arguments.push(format!("--{flag}={entries}"));
            }
        };
        let exclusions = self.exclusions;
        let mut inbound_ports = exclusions.inbound_ports.clone();
        if self.relay && !inbound_ports.contains(&ports::RELAY) {
            inbound_ports.push(ports::RELAY);
        }
        list("inbound-port-exclusion-list", joined(&inbound_ports));
        list("outbound-port-exclusion-list", joined(&exclusions.outbound_ports));
        list(
            "outbound-ip-range-exclusion-list",
            joined(&exclusions.outbound_ranges),
        );
        list(
            "outbound-ip-range-inclusion-list",
            joined(&exclusions.only_outbound_ranges),
        );
        list("network-interface-exclusion-list", joined(&exclusions.interfaces));
        if self.config.sidecar.local_proxy_mode == LocalProxyMode::PodIP {
            list("local-proxy-mode", "PodIP".to_owned());
        }
        arguments
    }

    /// `envoy`: the sidecar.
    pub(super) fn envoy(&self) -> Value {
        let sidecar = &self.config.sidecar;
        let service = &self.proxy.service;
        let native = self.settings.start_order == StartOrder::NativeSidecar;
        value(Container {
            name: ENVOY_CONTAINER.to_owned(),
            image: Some(either(&sidecar.envoy_image, &self.settings.envoy_image)),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            restart_policy: self.restart_policy(),
            command: Some(vec!["envoy".to_owned()]),
            args: Some(vec![
                "--log-level".to_owned(),
                log_level(&sidecar.log_level).to_owned(),
                "--config-path".to_owned(),
                format!("{DIRECTORY}/{BOOTSTRAP}"),
                "--service-cluster".to_owned(),
                service.to_string(),
                "--concurrency".to_owned(),
                workers(&sidecar.resources).to_string(),
                "--drain-time-s".to_owned(),
                DRAIN.to_string(),
                // It shares a socket name with any other Envoy in the pod, an application's own included.
                "--disable-hot-restart".to_owned(),
            ]),
            env: Some(vec![
                field("POD_UID", "metadata.uid"),
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("POD_IP", "status.podIP"),
                field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            ]),
            ports: Some(self.envoy_ports()),
            resources: some_resources(&sidecar.resources),
            startup_probe: native.then(|| ready_probe(1, 600)),
            readiness_probe: Some(ready_probe(5, 3)),
            lifecycle: self.linger(),
            security_context: Some(unprivileged(PROXY_UID)),
            volume_mounts: Some(self.envoy_mounts()),
            ..Default::default()
        })
    }

    fn envoy_mounts(&self) -> Vec<VolumeMount> {
        // A socket on a read-only mount can be connected to.
        let relay = self.relay.then(|| mount(RELAY_VOLUME, RELAY_DIRECTORY, true));
        [mount(BOOTSTRAP_VOLUME, DIRECTORY, true)]
            .into_iter()
            .chain(relay)
            .collect()
    }

    fn envoy_ports(&self) -> Vec<ContainerPort> {
        let fixed = [
            ("proxy-admin".to_owned(), ports::ENVOY_ADMIN),
            ("proxy-inbound".to_owned(), ports::INBOUND),
            ("proxy-metrics".to_owned(), ports::PROMETHEUS),
        ];
        let probes = self
            .probe_ports
            .iter()
            .map(|kind| (format!("{}-port", kind.name()), kind.port()));
        fixed
            .into_iter()
            .chain(probes)
            .map(|(name, port)| container_port(name, port))
            .collect()
    }

    /// A plain container is told to end together with the application, which may still have requests to finish.
    fn linger(&self) -> Option<Lifecycle> {
        let StartOrder::Container { sleep_hook: true } = self.settings.start_order else {
            return None;
        };
        let seconds = LINGER.min(self.grace.unwrap_or(30) / 2);
        (seconds > 0).then(|| Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// `osm-healthcheck`: answers rewritten TCP and gRPC probes.
    pub(super) fn healthcheck(&self) -> Value {
        let allowed: Vec<u16> = self.helper_ports.iter().copied().collect();
        let mut args = vec![
            "healthcheck".to_owned(),
            format!("--allowed-ports={}", joined(&allowed)),
        ];
        // Applications of this mode listen on the pod's address alone.
        let by_address = self.config.sidecar.local_proxy_mode == LocalProxyMode::PodIP;
        if by_address {
            args.push("--address=$(POD_IP)".to_owned());
        }
        value(Container {
            name: HEALTHCHECK_CONTAINER.to_owned(),
            image: Some(self.settings.healthcheck_image.clone()),
            image_pull_policy: self.settings.pull_policy.clone(),
            restart_policy: self.restart_policy(),
            command: Some(vec!["osm-sidecar".to_owned()]),
            args: Some(args),
            env: by_address.then(|| vec![field("POD_IP", "status.podIP")]),
            ports: Some(vec![container_port("healthcheck".to_owned(), ports::HEALTHCHECK)]),
            resources: self.helper_resources(),
            security_context: Some(unprivileged(HELPER_UID)),
            ..Default::default()
        })
    }

    /// `osm-relay`: keeps the sidecar's last good configuration, see `osm_core::relay`. It is Envoy's way to the
    /// controller, and therefore runs as Envoy's user, which redirection lets out.
    pub(super) fn relay(&self) -> Value {
        let controller = bootstrap::address(&self.settings.control_plane_namespace);
        let container = Container {
            name: RELAY.to_owned(),
            image: Some(self.settings.healthcheck_image.clone()),
            image_pull_policy: self.settings.pull_policy.clone(),
            restart_policy: self.restart_policy(),
            command: Some(vec!["osm-sidecar".to_owned()]),
            args: Some(vec![
                "relay".to_owned(),
                // With the last dot, no search list is tried first.
                format!("--controller={controller}.:{}", ports::ADS),
                format!("--server-name={}", names::ads_server(&self.settings.trust_domain)),
            ]),
            ports: Some(vec![container_port("relay".to_owned(), ports::RELAY)]),
            resources: self.relay_resources(),
            liveness_probe: Some(Probe {
                http_get: Some(HTTPGetAction {
                    path: Some("/health/alive".to_owned()),
                    port: IntOrString::Int(ports::RELAY.into()),
                    scheme: Some("HTTP".to_owned()),
                    ..Default::default()
                }),
                period_seconds: Some(10),
                timeout_seconds: Some(2),
                failure_threshold: Some(3),
                ..Default::default()
            }),
            security_context: Some(unprivileged(PROXY_UID)),
            volume_mounts: Some(vec![
                mount(BOOTSTRAP_VOLUME, DIRECTORY, true),
                mount(RELAY_VOLUME, RELAY_DIRECTORY, false),
            ]),
            ..Default::default()
        };
        #[cfg(feature = "sabotage")]
        let container = if crate::sabotage::Fault::Forgetful.is_on() {
            let env = Some(vec![EnvVar {
                name: "OSM_SABOTAGE".to_owned(),
                value: Some("forgetful".to_owned()),
                ..Default::default()
            }]);
            Container { env, ..container }
        } else {
            container
        };
        value(container)
    }

    fn restart_policy(&self) -> Option<String> {
        (self.settings.start_order == StartOrder::NativeSidecar).then(|| "Always".to_owned())
    }

    /// Where a quota demands that every container has resources, the init container must have some, too. It runs
    /// before all others, so they add nothing to what the pod needs.
    fn init_resources(&self) -> Option<ResourceRequirements> {
        some_resources(&self.config.sidecar.resources)
    }

    fn helper_resources(&self) -> Option<ResourceRequirements> {
        some_resources(&self.config.sidecar.resources)?;
        Some(resources(("5m", "8Mi"), ("100m", "32Mi")))
    }

    /// The limit covers the volume when it is full: its memory is the relay's.
    fn relay_resources(&self) -> Option<ResourceRequirements> {
        some_resources(&self.config.sidecar.resources)?;
        Some(resources(("5m", "16Mi"), ("200m", "128Mi")))
    }
}

fn resources(requests: (&str, &str), limits: (&str, &str)) -> ResourceRequirements {
    let of = |(cpu, memory): (&str, &str)| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    ResourceRequirements {
        requests: of(requests),
        limits: of(limits),
        ..Default::default()
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

/// Envoy is ready once it has its first listeners and clusters from the controller.
///
/// As a startup probe it holds the application back until then: for ten minutes, after which Envoy is started anew.
fn ready_probe(period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(READY_PATH.to_owned()),
            port: IntOrString::Int(ports::READINESS_PROBE.into()),
            scheme: Some("HTTP".to_owned()),
            ..Default::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(2),
        ..Default::default()
    }
}

fn unprivileged(user: i64) -> SecurityContext {
    SecurityContext {
        run_as_user: Some(user),
        run_as_group: Some(user),
        run_as_non_root: Some(true),
        privileged: Some(false),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        seccomp_profile: Some(seccomp()),
        ..Default::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

fn container_port(name: String, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name),
        container_port: port.into(),
        protocol: Some("TCP".to_owned()),
        ..Default::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: Some("v1".to_owned()),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A level Envoy knows: it would not start with another.
fn log_level(configured: &str) -> &str {
    match configured {
        "trace" | "debug" | "info" | "warning" | "warn" | "error" | "critical" | "off" => configured,
        _ => "error",
    }
}

/// As many threads as the CPU limit gives whole processors, at most 16.
fn workers(resources: &ResourceRequirements) -> u32 {
    let limit = resources.limits.as_ref().and_then(|limits| limits.get("cpu"));
    let cores = limit.and_then(|quantity| match quantity.0.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<f64>().ok().map(|number| number / 1000.0),
        None => quantity.0.parse::<f64>().ok(),
    });
    match cores {
        Some(cores) if cores.is_finite() && cores > 0.0 => (cores.ceil() as u32).clamp(1, 16),
        _ => WORKERS,
    }
}

fn some_resources(resources: &ResourceRequirements) -> Option<ResourceRequirements> {
    (*resources != ResourceRequirements::default()).then(|| resources.clone())
}

fn either(configured: &str, default: &str) -> String {
    if configured.is_empty() {
        default
    } else {
        configured
    }
    .to_owned()
}

fn joined<T: Display>(entries: &[T]) -> String {
    let texts: Vec<String> = entries.iter().map(T::to_string).collect();
    texts.join(",")
}

fn value(container: Container) -> Value {
    serde_json::to_value(container).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_follow_the_cpu_limit() {
        for (limit, expected) in [
            ("500m", 1),
            ("2", 2),
            ("2500m", 3),
            ("1.5", 2),
            ("nonsense", 2),
            ("900", 16),
        ] {
            let limits = Some(BTreeMap::from([("cpu".to_owned(), Quantity(limit.to_owned()))]));
            assert_eq!(
                workers(&ResourceRequirements {
                    limits,
                    ..Default::default()
                }),
                expected,
                "{limit}"
            );
        }
        assert_eq!(workers(&ResourceRequirements::default()), WORKERS);
    }

    #[test]
    fn an_unknown_log_level_does_not_keep_envoy_from_starting() {
        assert_eq!(log_level("debug"), "debug");
        assert_eq!(log_level("Verbose"), "error");
    }
}
