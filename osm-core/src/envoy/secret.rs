//! Secrets: a proxy's own certificate, and what it checks its peers' certificates against.

use bytes::Bytes;
use osm_proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, TlsCertificate, secret::Type,
    },
};

use super::subject;
use crate::{
    api::names::SERVICE_CERTIFICATE,
    ir::{ServiceCertificate, Subjects, ValidationContext},
};

/// The SDS resource of a validation context.
pub fn validation_context(context: &ValidationContext) -> Secret {
    let subjects = match &context.subjects {
        Subjects::NamedByChain => vec![],
        Subjects::Only(names) => subject::only(names),
    };
    let validation = CertificateValidationContext {
        trusted_ca: Some(inline(&context.roots)),
        match_typed_subject_alt_names: subjects,
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
