//! Mutual TLS between sidecars.
//!
//! Invariant: every connection of the mesh is authenticated both ways, with certificates and roots from SDS over ADS.

use osm_proto::envoy::{
    config::core::v3::{TransportSocket, transport_socket::ConfigType},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
        SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    },
};
use prost::{Message, Name};

use super::parts::{ads, any};
use crate::{
    api::names::{ALPN, ROOT_CERTIFICATE_INBOUND, SERVICE_CERTIFICATE, root_certificate_outbound},
    ir::{self, ServiceKey},
};

/// The protocols a client sidecar offers; the inbound listener's filter chains match on it.
pub(super) fn alpn() -> Vec<String> {
    vec![ALPN.to_owned()]
}

/// The client side of connections to `service`. Its secret has the roots and the names of the service.
pub(super) fn upstream(name: &str, service: &ServiceKey, parameters: &ir::TlsParameters) -> TransportSocket {
    let secret = sds(root_certificate_outbound(&service.to_string()));
    let validation = ValidationContextType::ValidationContextSdsSecretConfig(secret);
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: alpn(),
            ..common(validation, parameters)
        }),
        sni: service.fqdn(),
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
    let names = CertificateValidationContext {
        match_typed_subject_alt_names: clients,
        ..Default::default()
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(names),
        validation_context_sds_secret_config: Some(sds(ROOT_CERTIFICATE_INBOUND.to_owned())),
        ..Default::default()
    };
    let validation = ValidationContextType::CombinedValidationContext(validation);
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(validation, parameters)),
        require_client_certificate: Some(true),
        ..Default::default()
    };
    socket(name, &context)
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
