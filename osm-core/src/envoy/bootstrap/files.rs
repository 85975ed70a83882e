//! The files beside the bootstrap configuration: the xDS client certificate and the mesh's root, by file-based SDS.
//!
//! The kubelet replaces the files of a Secret volume by moving a symbolic link in its folder; Envoy watches the
//! folder and reads them anew. So a renewed certificate needs no restart. Invariant: names of files are those of the
//! original's Secrets.

use osm_proto::envoy::{
    config::core::v3::{
        ApiVersion, ConfigSource, DataSource, PathConfigSource, WatchedDirectory,
        config_source::ConfigSourceSpecifier, data_source::Specifier,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, SdsSecretConfig, Secret, TlsCertificate, secret,
    },
    service::discovery::v3::DiscoveryResponse,
};

use crate::envoy::{json::to_json, parts::any};

/// Where the bootstrap Secret is mounted in the Envoy container.
pub const DIRECTORY: &str = "/etc/envoy";
/// File of the bootstrap configuration.
pub const BOOTSTRAP: &str = "bootstrap.yaml";
/// File that tells Envoy where certificate and key are.
pub const CERTIFICATE_SECRET: &str = "tls_certificate_sds_secret.yaml";
/// File that tells Envoy where the root is.
pub const VALIDATION_SECRET: &str = "validation_context_sds_secret.yaml";
/// File of the mesh's root certificates, PEM.
pub const ROOT: &str = "cacert.pem";
/// File of the xDS client certificate, PEM.
pub const CERTIFICATE: &str = "sds_cert.pem";
/// File of the xDS client certificate's key, PEM.
pub const KEY: &str = "sds_key.pem";

/// Where the volume of what the relay keeps is mounted.
pub const RELAY_DIRECTORY: &str = "/var/run/osm-relay";
/// The socket in that folder at which the relay serves Envoy.
pub const RELAY_SOCKET: &str = "xds.sock";

/// SDS name of the xDS client certificate.
pub(super) const CERTIFICATE_SECRET_NAME: &str = "tls_sds";
/// SDS name of the root that signs the controller.
pub(super) const VALIDATION_SECRET_NAME: &str = "validation_context_sds";

/// Content of the file [`CERTIFICATE_SECRET`].
pub fn certificate_secret(directory: &str) -> String {
    let certificate = TlsCertificate {
        certificate_chain: Some(file(directory, CERTIFICATE)),
        private_key: Some(file(directory, KEY)),
        watched_directory: Some(watched_directory(directory)),
        ..Default::default()
    };
    response(CERTIFICATE_SECRET_NAME, secret::Type::TlsCertificate(certificate))
}

/// Content of the file [`VALIDATION_SECRET`].
pub fn validation_secret(directory: &str) -> String {
    let context = CertificateValidationContext {
        trusted_ca: Some(file(directory, ROOT)),
        watched_directory: Some(watched_directory(directory)),
        ..Default::default()
    };
    response(VALIDATION_SECRET_NAME, secret::Type::ValidationContext(context))
}

/// A reference to the secret `name` in `file`.
pub(super) fn watched(directory: &str, name: &str, file: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(PathConfigSource {
                path: format!("{directory}/{file}"),
                watched_directory: Some(watched_directory(directory)),
                ..Default::default()
            })),
            ..Default::default()
        }),
    }
}

fn response(name: &str, secret: secret::Type) -> String {
    let secret = Secret {
        name: name.to_owned(),
        r#type: Some(secret),
    };
    to_json(&DiscoveryResponse {
        resources: vec![any(&secret)],
        ..Default::default()
    })
    .to_string()
}

fn file(directory: &str, name: &str) -> DataSource {
    DataSource {
        specifier: Some(Specifier::Filename(format!("{directory}/{name}"))),
        ..Default::default()
    }
}

fn watched_directory(directory: &str) -> WatchedDirectory {
    WatchedDirectory {
        path: directory.to_owned(),
        ..Default::default()
    }
}
