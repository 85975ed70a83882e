//! Secrets: a proxy's own certificate, and what it checks its peers' certificates against.

use bytes::Bytes;
use osm_proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, SubjectAltNameMatcher, TlsCertificate, secret::Type,
        subject_alt_name_matcher::SanType,
    },
    r#type::matcher::v3::StringMatcher,
};

use super::matcher::{exact, suffix};
use crate::{
    api::names::SERVICE_CERTIFICATE,
    ir::{ServiceCertificate, Subjects, ValidationContext},
};

/// A name that no certificate has: it is not a DNS name, so no issuer signs it.
const NOBODY: &str = "(nobody)";

/// The SDS resource of a validation context.
///
/// It always demands a name: Envoy takes a context without one to accept every certificate of the roots.
pub fn validation_context(context: &ValidationContext) -> Secret {
    let names = match &context.subjects {
        Subjects::AnyWorkload(trust_domain) => vec![suffix(format!(".{trust_domain}"))],
        Subjects::Only(names) if names.is_empty() => vec![exact(NOBODY)],
        Subjects::Only(names) => names.iter().map(exact).collect(),
    };
    let validation = CertificateValidationContext {
        trusted_ca: Some(inline(&context.roots)),
        match_typed_subject_alt_names: names.into_iter().map(dns_name).collect(),
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

fn dns_name(matcher: StringMatcher) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Dns.into(),
        matcher: Some(matcher),
        ..Default::default()
    }
}

fn inline(pem: &str) -> DataSource {
    let bytes = Bytes::copy_from_slice(pem.as_bytes());
    DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
        ..Default::default()
    }
}
