//! The cluster's own keys and certificates, and the kubeconfig files made of them.
//!
//! Owns two authorities: one for the API server, its clients and the kubelet, and one for the aggregation layer only,
//! since whoever the latter signs may speak as anyone. Nothing here has to do with the mesh's certificates.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use super::network;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes everything anew in `folder`, for a node of the given name; the kubeconfig files lead to the API server at the
    /// address `api`.
    pub fn create(folder: &Path, node: &str, api: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let made = Self {
            folder: folder.to_owned(),
        };
        let cluster = authority("osm-e2e")?;
        let front = authority("osm-e2e-front-proxy")?;
        made.write("ca.crt", &cluster.pem())?;
        made.write("ca.key", &cluster.key().serialize_pem())?;
        made.write("front-proxy-ca.crt", &front.pem())?;
        let service_account = KeyPair::generate()?;
        made.write("service-account.key", &service_account.serialize_pem())?;
        made.write("service-account.pub", &service_account.public_key_pem())?;

        let api_names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ];
        let api_addresses = [
            network::NODE.into(),
            network::API_SERVICE.into(),
            network::loopback(),
        ];
        made.issue(
            &cluster,
            "apiserver",
            &server("kube-apiserver", &api_names, &api_addresses)?,
        )?;
        made.issue(
            &cluster,
            "kubelet",
            &server(node, &[node], &[network::NODE.into()])?,
        )?;
        made.issue(
            &cluster,
            "apiserver-kubelet-client",
            &client("kube-apiserver", Some("system:masters"))?,
        )?;
        made.issue(&front, "front-proxy-client", &client("front-proxy-client", None)?)?;

        let users = [
            ("admin", "kubernetes-admin".to_owned(), Some("system:masters")),
            (
                "controller-manager",
                "system:kube-controller-manager".to_owned(),
                None,
            ),
            ("scheduler", "system:kube-scheduler".to_owned(), None),
            ("proxy", "system:kube-proxy".to_owned(), None),
            ("node", format!("system:node:{node}"), Some("system:nodes")),
        ];
        for (name, user, group) in users {
            let (certificate, key) = sign(&cluster, &client(&user, group)?)?;
            made.write(
                &format!("{name}.kubeconfig"),
                &kubeconfig(api, &cluster.pem(), &certificate, &key)?,
            )?;
        }
        Ok(made)
    }

    /// The file of that name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn issue(&self, authority: &Authority, name: &str, params: &CertificateParams) -> Result<()> {
        let (certificate, key) = sign(authority, params)?;
        self.write(&format!("{name}.crt"), &certificate)?;
        self.write(&format!("{name}.key"), &key)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_secret(&self.file(name), text)
    }
}

/// Writes a file only its owner may read.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let told = || format!("cannot write {}", path.display());
    fs::write(path, "").with_context(told)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(told)?;
    fs::write(path, text).with_context(told)
}

fn named(common_name: &str, organisation: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organisation);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn authority(name: &str) -> Result<Authority> {
    let mut params = named(name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn server(name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<CertificateParams> {
    let mut params = named(name, None);
    for name in names {
        params
            .subject_alt_names
            .push(SanType::DnsName((*name).try_into()?));
    }
    params
        .subject_alt_names
        .extend(addresses.iter().copied().map(SanType::IpAddress));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client(user: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = named(user, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// The certificate and its new key, both PEM.
fn sign(authority: &Authority, params: &CertificateParams) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn kubeconfig(api: &str, authority: &str, certificate: &str, key: &str) -> Result<String> {
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "osm-e2e",
        "clusters": [{"name": "osm-e2e", "cluster": {
            "server": api,
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{"name": "osm-e2e", "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        }}],
        "contexts": [{"name": "osm-e2e", "context": {"cluster": "osm-e2e", "user": "osm-e2e"}}],
    });
    Ok(serde_json::to_string_pretty(&config)?)
}
