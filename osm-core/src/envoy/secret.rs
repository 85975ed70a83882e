//! Secrets: a proxy's own certificate, and what it checks its peers' certificates against.

use bytes::Bytes;
use osm_proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, TlsCertificate, secret::Type,
    },
};

use crate::{
    api::names::SERVICE_CERTIFICATE,
    ir::{ServiceCertificate, ValidationContext},
};

/// The SDS resource of a validation context. It names nobody: it must not be used but together with the names that a
/// cluster or a filter chain demands (`tls`).
pub fn validation_context(context: &ValidationContext) -> Secret {
    let validation = CertificateValidationContext {
        trusted_ca: Some(inline(&context.roots)),
        ..Default::default()
    };
    Secret {
        name: context.name.clone(),
        r#type: Some(Type::ValidationContext(validation)),
    }
}

/// The SDS resource of a proxy's own certificate.
pub fn service_certificate(certificate: &ServiceCertificate) -> Secret {
    let tls = TlsCertificate {
        certificate_chain: Some(inline(&certificate.chain)),
        private_key: Some(inline(&certificate.key)),
        ..Default::default()
    };
    Secret {
        name: SERVICE_CERTIFICATE.to_owned(),
        r#type: Some(Type::TlsCertificate(tls)),
    }
}

fn inline(pem: &str) -> DataSource {
    let bytes = Bytes::copy_from_slice(pem.as_bytes());
    DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
        ..Default::default()
    }
}
