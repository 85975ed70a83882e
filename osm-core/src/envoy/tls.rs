//! Mutual TLS between sidecars.
//!
//! Invariants: every connection of the mesh is authenticated both ways, with certificates and roots from SDS over ADS;
//! whoever uses the roots also says which names it accepts, at least one.

use osm_proto::envoy::{
    config::core::v3::{TransportSocket, transport_socket::ConfigType},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
        SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    },
};
use prost::{Message, Name};

use super::{
    parts::{ads, any},
    subject,
};
use crate::{
    api::names::{ALPN, ROOT_CERTIFICATE_INBOUND, ROOT_CERTIFICATE_OUTBOUND, SERVICE_CERTIFICATE},
    ir::{self, UpstreamCluster},
};

/// The protocols a client sidecar offers; the inbound listener's filter chains match on it.
pub(super) fn alpn() -> Vec<String> {
    vec![ALPN.to_owned()]
}

/// The client side of connections to a service: to the servers it names, whose certificates chain to the roots in the
/// secret that all clusters share.
pub(super) fn upstream(
    name: &str,
    upstream: &UpstreamCluster,
    parameters: &ir::TlsParameters,
) -> TransportSocket {
    let validation = named(subject::only(&upstream.servers), ROOT_CERTIFICATE_OUTBOUND);
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: alpn(),
            ..common(validation, parameters)
        }),
        sni: upstream.key.service.fqdn(),
        ..Default::default()
    };
    socket(name, &context)
}

/// The server side of the connections that a chain of the inbound listener accepts: from these clients, whose
/// certificates chain to the roots in the secret that all chains share.
///
/// It selects no ALPN protocol: with `osm` selected, Envoy would take every connection for HTTP/1 instead of looking
/// at its first bytes, and gRPC would fail.
pub(super) fn downstream(
    name: &str,
    clients: Vec<SubjectAltNameMatcher>,
    parameters: &ir::TlsParameters,
) -> TransportSocket {
    let validation = named(clients, ROOT_CERTIFICATE_INBOUND);
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(validation, parameters)),
        require_client_certificate: Some(true),
        ..Default::default()
    };
    socket(name, &context)
}

/// Certificates with one of these names that chain to the roots in this secret.
fn named(names: Vec<SubjectAltNameMatcher>, roots: &str) -> ValidationContextType {
    let names = CertificateValidationContext {
        match_typed_subject_alt_names: names,
        ..Default::default()
    };
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(names),
        validation_context_sds_secret_config: Some(sds(roots.to_owned())),
        ..Default::default()
    })
}

fn common(validation: ValidationContextType, parameters: &ir::TlsParameters) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: parameters.minimum,
            tls_maximum_protocol_version: parameters.maximum,
            cipher_suites: parameters.cipher_suites.clone(),
            ecdh_curves: parameters.ecdh_curves.clone(),
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![sds(SERVICE_CERTIFICATE.to_owned())],
        validation_context_type: Some(validation),
        ..Default::default()
    }
}

fn sds(name: String) -> SdsSecretConfig {
    SdsSecretConfig {
        name,
        sds_config: Some(ads()),
    }
}

fn socket<M: Message + Name>(name: &str, context: &M) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(context))),
    }
}
