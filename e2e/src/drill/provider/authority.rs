//! A CA of a drill's own, as an operator may have one.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// One, with its key.
pub(super) struct Authority {
    /// Its common name.
    pub(super) name: String,
    /// Its serial number in hexadecimal, as Envoy prints it.
    pub(super) serial: String,
    /// PEM.
    pub(super) certificate: String,
    /// PEM.
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der())?;
        let serial = parsed.raw_serial().iter().skip_while(|byte| **byte == 0);
        Ok(Self {
            name: name.to_owned(),
            serial: serial.map(|byte| format!("{byte:02x}")).collect(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}
