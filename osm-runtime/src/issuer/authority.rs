//! A root with its private key: signs leaves in this process.
//!
//! Invariant: what an authority signs chains to its root. This is tried when it is loaded, so that a root whose key is
//! another's, or whose name cannot be reproduced, is refused before anything depends on it.

use std::{fmt, time::SystemTime};

use jiff::Timestamp;
use osm_core::certificate::{
    Certificate, KeyForm, Profile, ROOT_LIFETIME, Root, RootError, Usage, Validity, key_form,
};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SanType, SerialNumber,
};
use zeroize::Zeroizing;

use super::{
    IssueError,
    leaf::{KeyKind, Leaf, LeafRequest, private_key},
};

/// The organization in every certificate's subject, the original's.
const ORGANIZATION: &str = "Open Service Mesh";
/// The common name of a root made here, the original's.
const ROOT_NAME: &str = "osm-ca.openservicemesh.io";

/// A root as it is stored: PEM text of the certificate and of the key.
#[derive(Clone)]
pub struct StoredRoot {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for StoredRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredRoot(..)")
    }
}

/// A root that can sign.
pub struct Authority {
    root: Root,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("validity", &self.root.validity())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new root and key, as they are to be stored.
    ///
    /// # Errors
    /// [`IssueError::Signing`].
    pub fn generate(kind: KeyKind, now: Timestamp) -> Result<StoredRoot, IssueError> {
        let key = generate_key(kind)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "US");
        params.distinguished_name.push(DnType::LocalityName, "CA");
        params
            .distinguished_name
            .push(DnType::OrganizationName, ORGANIZATION);
        params.distinguished_name.push(DnType::CommonName, ROOT_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        set_validity(&mut params, Validity::starting(now, ROOT_LIFETIME, None));
        let certificate = params.self_signed(&key).map_err(signing)?.pem();
        Ok(StoredRoot {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    /// Takes a stored root into use, after checking that it is one, is valid at `now` and can sign.
    ///
    /// # Errors
    /// [`IssueError::Root`] saying what is wrong with it; the key is never quoted.
    pub fn load(stored: &StoredRoot, now: Timestamp) -> Result<Self, IssueError> {
        let root = Root::from_pem(&stored.certificate)?;
        root.check_validity(now)?;
        let (form, der) = key_form(&stored.key)?;
        let der = Zeroizing::new(der);
        let key = KeyPair::try_from(&private_key(form, &der))
            .map_err(|_| RootError::Key("it is of a kind that is not supported, or damaged"))?;
        root.check_key(&key.subject_public_key_info())?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&root.der().to_vec().into(), key).map_err(signing)?;
        let authority = Self { root, issuer };
        authority.check_name(now)?;
        Ok(authority)
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whether signing takes long enough (RSA: a millisecond and more) to be kept off an async thread.
    pub fn is_slow(&self) -> bool {
        self.issuer.key().algorithm() == &PKCS_RSA_SHA256
    }

    /// Issues a leaf with a new key. With P-256 on both sides this takes well under a millisecond.
    ///
    /// # Errors
    /// [`IssueError::Root`] when the root is not valid at `now`; [`IssueError::Signing`] when a name cannot be encoded.
    pub fn sign(&self, request: &LeafRequest, now: Timestamp) -> Result<Leaf, IssueError> {
        self.root.check_validity(now)?;
        let key = generate_key(request.key)?;
        let mut params = leaf_params(&request.profile, request.key)?;
        set_validity(
            &mut params,
            Validity::starting(now, request.lifetime, Some(self.root.validity())),
        );
        let certificate = params.signed_by(&key, &self.issuer).map_err(signing)?;
        let der = Zeroizing::new(key.serialize_der());
        Leaf::new(vec![certificate.der().to_vec()], KeyForm::Pkcs8, der, now)
    }

    /// Signs a throw-away certificate and compares its issuer with the root's subject, byte for byte: a name with
    /// attributes that cannot be reproduced (several of one kind) would make every leaf untrusted.
    fn check_name(&self, now: Timestamp) -> Result<(), IssueError> {
        let mut params = CertificateParams::default();
        set_validity(
            &mut params,
            Validity::starting(now, ROOT_LIFETIME, Some(self.root.validity())),
        );
        let key = generate_key(KeyKind::P256)?;
        let probe = params.signed_by(&key, &self.issuer).map_err(signing)?;
        let issuer = Certificate::from_der(probe.der())
            .map_err(RootError::from)?
            .issuer;
        if issuer == self.root.certificate().subject {
            Ok(())
        } else {
            Err(IssueError::Signing(
                "the root's subject name has attributes that cannot be reproduced".into(),
            ))
        }
    }
}

/// The parts of a leaf that come from its profile: also the contents of a certificate request to another CA.
pub(super) fn leaf_params(profile: &Profile, key: KeyKind) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, ORGANIZATION);
    params
        .distinguished_name
        .push(DnType::CommonName, profile.common_name.as_str());
    for name in &profile.dns_names {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.as_str().try_into().map_err(signing)?));
    }
    for uri in &profile.uris {
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().map_err(signing)?));
    }
    params.key_usages = match key {
        KeyKind::P256 => vec![KeyUsagePurpose::DigitalSignature],
        _ => vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ],
    };
    params.extended_key_usages = match profile.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    };
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A new private key.
pub(super) fn generate_key(kind: KeyKind) -> Result<KeyPair, IssueError> {
    let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size);
    match kind {
        KeyKind::P256 => KeyPair::generate(),
        KeyKind::Rsa2048 => rsa(RsaKeySize::_2048),
        KeyKind::Rsa3072 => rsa(RsaKeySize::_3072),
        KeyKind::Rsa4096 => rsa(RsaKeySize::_4096),
    }
    .map_err(signing)
}

/// 127 random bits: positive, and of the same length whoever reads it (RFC 5280 asks for at most 20 bytes).
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    params.not_before = SystemTime::from(validity.not_before).into();
    params.not_after = SystemTime::from(validity.not_after).into();
}

pub(super) fn signing(error: rcgen::Error) -> IssueError {
    IssueError::Signing(error.to_string())
}
