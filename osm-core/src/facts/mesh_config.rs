//! MeshConfig: the settings of the mesh.

use std::{sync::Arc, time::Duration};

use super::{Diagnostic, Fact, FactKey, FactKind, excerpt, service::port_number};
use crate::{
    api::{self, duration, names, names::CLUSTER_DOMAIN},
    identity::is_dns_subdomain,
    ir::{ExternalAuthorization, Settings, TlsParameters, Tracing},
};

/// The port, path and host of the tracing collector when MeshConfig gives none.
const TRACING_PORT: u16 = 9411;
const TRACING_PATH: &str = "/api/v2/spans";
const TRACING_HOST: &str = "jaeger";
/// The life of service certificates when MeshConfig gives none, and its bounds.
const VALIDITY: Duration = Duration::from_hours(24);
const MIN_VALIDITY: Duration = Duration::from_mins(10);
const MAX_VALIDITY: Duration = Duration::from_hours(24 * 365 * 10);

/// The names of Envoy's TLS versions, by its number of them.
const TLS_VERSIONS: [&str; 5] = ["TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"];
/// The lowest and highest TLS version when MeshConfig gives none.
const MIN_TLS: i32 = 3;
const MAX_TLS: i32 = 4;
/// What Envoy accepts (its documentation of `TlsParameters`); anything else would make it reject every cluster.
const CIPHER_SUITES: [&str; 16] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
];
const ECDH_CURVES: [&str; 5] = ["X25519", "P-256", "P-384", "P-521", "X25519MLKEM768"];
/// Log levels of the control plane, in the original's names.
const LOG_LEVELS: [&str; 9] = [
    "disabled", "trace", "debug", "info", "warn", "error", "fatal", "panic", "",
];

/// A MeshConfig.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What resources depend on.
    pub settings: Settings,
    /// Whether every workload may call every other.
    pub permissive: bool,
    /// Whether traffic to the outside passes through.
    pub egress: bool,
    /// What the control plane itself depends on.
    pub control: ControlSettings,
}

/// Settings of the control plane: plain data for the binaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// How long a service certificate is valid; 10 minutes to 10 years.
    pub service_certificate_validity: Duration,
    /// The log level, in the original's names (`disabled`, `trace` to `panic`).
    pub log_level: Arc<str>,
    /// Whether the debug pages are served.
    pub debug_server: bool,
    /// Most proxies one replica serves; `None` is no limit.
    pub max_data_plane_connections: Option<usize>,
    /// Whether a MeshRootCertificate is made for the configured certificate provider.
    pub describe_root: bool,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self {
            service_certificate_validity: VALIDITY,
            log_level: "info".into(),
            debug_server: false,
            max_data_plane_connections: None,
            describe_root: false,
        }
    }
}

impl MeshConfig {
    /// What is in force while there is none: every field absent, hence neither permissive mode nor egress.
    pub fn absent(namespace: Arc<str>) -> Self {
        let tls = TlsParameters {
            minimum: MIN_TLS,
            maximum: MAX_TLS,
            ..TlsParameters::default()
        };
        Self {
            namespace,
            name: names::MESH_CONFIG.into(),
            settings: Settings {
                tls,
                ..Settings::default()
            },
            permissive: false,
            egress: false,
            control: ControlSettings::default(),
        }
    }
}

/// Reads a MeshConfig.
///
/// # Errors
/// `InvalidMeshConfig` names the field. The last good settings stay in force.
pub fn from(object: &api::MeshConfig) -> Result<Fact, Diagnostic> {
    let key = FactKey::of(FactKind::MeshConfig, &object.metadata);
    let spec = &object.spec;
    let read = || -> Result<MeshConfig, String> {
        Ok(MeshConfig {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            settings: Settings {
                tls: tls(spec)?,
                tracing: tracing(spec, &key.namespace)?,
                external_authorization: authorization(spec)?,
                active_health_checks: spec.feature_flags.enable_envoy_active_health_checks,
            },
            permissive: spec.traffic.enable_permissive_traffic_policy_mode,
            egress: spec.traffic.enable_egress,
            control: control(spec)?,
        })
    };
    match read() {
        Ok(fact) => Ok(Fact::MeshConfig(Box::new(fact))),
        Err(message) => Err(Diagnostic::new(key.clone(), "InvalidMeshConfig", message)),
    }
}

fn tls(spec: &api::mesh_config::MeshConfigSpec) -> Result<TlsParameters, String> {
    let sidecar = &spec.sidecar;
    let version = |field: &str, text: &str, default: i32| {
        let number = TLS_VERSIONS.iter().position(|known| *known == text);
        match number.and_then(|number| i32::try_from(number).ok()) {
            Some(number) => Ok(number),
            None if text.is_empty() => Ok(default),
            None => {
                let known = TLS_VERSIONS.join(", ");
                Err(format!(
                    "spec.sidecar.{field} is {:?}: it must be one of {known}",
                    excerpt(text)
                ))
            }
        }
    };
    let minimum = version(
        "tlsMinProtocolVersion",
        &sidecar.tls_min_protocol_version,
        MIN_TLS,
    )?;
    let maximum = version(
        "tlsMaxProtocolVersion",
        &sidecar.tls_max_protocol_version,
        MAX_TLS,
    )?;
    if maximum != 0 && minimum > maximum {
        return Err("spec.sidecar.tlsMinProtocolVersion is above tlsMaxProtocolVersion".to_owned());
    }
    let known = |field: &str, list: &[String], known: &[&str]| match list
        .iter()
        .find(|item| !known.contains(&&***item))
    {
        Some(item) => Err(format!(
            "spec.sidecar.{field} has {:?}: Envoy knows {}",
            excerpt(item),
            known.join(", ")
        )),
        None => Ok(list.to_vec()),
    };
    Ok(TlsParameters {
        minimum,
        maximum,
        cipher_suites: known("cipherSuites", &sidecar.cipher_suites, &CIPHER_SUITES)?,
        ecdh_curves: known("ecdhCurves", &sidecar.ecdh_curves, &ECDH_CURVES)?,
    })
}

fn tracing(spec: &api::mesh_config::MeshConfigSpec, namespace: &str) -> Result<Option<Tracing>, String> {
    let tracing = &spec.observability.tracing;
    if !tracing.enable {
        return Ok(None);
    }
    let port = match tracing.port {
        0 => TRACING_PORT,
        port => port_number(port)
            .ok_or_else(|| format!("spec.observability.tracing.port is {port}: ports are 1 to 65535"))?,
    };
    let address = match &*tracing.address {
        "" => format!("{TRACING_HOST}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        address => host("spec.observability.tracing.address", address)?,
    };
    let endpoint = if tracing.endpoint.is_empty() {
        TRACING_PATH.to_owned()
    } else {
        tracing.endpoint.clone()
    };
    let printable = endpoint.len() <= 1_024 && endpoint.bytes().all(|byte| byte.is_ascii_graphic());
    if !printable || !endpoint.starts_with('/') {
        let problem = "it must be a path that starts with /";
        return Err(format!(
            "spec.observability.tracing.endpoint is {:?}: {problem}",
            excerpt(&endpoint)
        ));
    }
    Ok(Some(Tracing {
        address,
        port,
        endpoint,
    }))
}

fn authorization(spec: &api::mesh_config::MeshConfigSpec) -> Result<Option<ExternalAuthorization>, String> {
    let authorization = &spec.traffic.inbound_external_authorization;
    if !authorization.enable {
        return Ok(None);
    }
    let field = "spec.traffic.inboundExternalAuthorization";
    let port = port_number(authorization.port)
        .ok_or_else(|| format!("{field}.port is {}: ports are 1 to 65535", authorization.port))?;
    let timeout = match &*authorization.timeout {
        "" => Duration::from_secs(1),
        text => duration::parse(text).map_err(|error| format!("{field}.timeout: {error}"))?,
    };
    let prefix = if authorization.stat_prefix.is_empty() {
        "inboundExtAuthz"
    } else {
        &authorization.stat_prefix
    };
    if prefix.len() > 256 || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "{field}.statPrefix is {:?}: letters, digits and dashes are safe",
            excerpt(prefix)
        ));
    }
    Ok(Some(ExternalAuthorization {
        address: host(&format!("{field}.address"), &authorization.address)?,
        port,
        stat_prefix: prefix.to_owned(),
        timeout_ms: u64::try_from(timeout.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, 3_600_000),
        failure_mode_allow: authorization.failure_mode_allow,
    }))
}

fn control(spec: &api::mesh_config::MeshConfigSpec) -> Result<ControlSettings, String> {
    let text = &spec.certificate.service_cert_validity_duration;
    // As in the original: what cannot be read is a day, what is too short is ten minutes.
    let validity = duration::parse(text)
        .unwrap_or(VALIDITY)
        .clamp(MIN_VALIDITY, MAX_VALIDITY);
    let level = &spec.observability.osm_log_level;
    if !LOG_LEVELS.contains(&&**level) {
        let known = LOG_LEVELS[..LOG_LEVELS.len() - 1].join(", ");
        return Err(format!(
            "spec.observability.osmLogLevel is {:?}: it must be one of {known}",
            excerpt(level)
        ));
    }
    let most = spec.sidecar.max_data_plane_connections;
    Ok(ControlSettings {
        service_certificate_validity: validity,
        log_level: if level.is_empty() {
            "info".into()
        } else {
            level.as_str().into()
        },
        debug_server: spec.observability.enable_debug_server,
        max_data_plane_connections: usize::try_from(most).ok().filter(|most| *most != 0),
        describe_root: spec.feature_flags.enable_mesh_root_certificate,
    })
}

fn host(field: &str, text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if text.parse::<std::net::IpAddr>().is_ok() || is_dns_subdomain(&name) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{field} is {:?}: it must be a host name or an address",
            excerpt(text)
        ))
    }
}
