//! A leaf certificate with its private key.
//!
//! Invariant: the key is wiped from memory when the last clone is dropped, and is in no `Debug` output (law 11).

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use osm_core::{
    certificate::{BACKDATE, Certificate, Profile, Validity, chain_from_pem},
    ir::ServiceCertificate,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

use super::IssueError;
use osm_core::certificate::{KeyForm, key_form};

/// The algorithm of a private key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA P-256: what everything uses unless an operator insists on RSA.
    #[default]
    P256,
    /// RSA of 2048 bits. Generating one takes a core a tenth of a second or more.
    Rsa2048,
    /// RSA of 3072 bits.
    Rsa3072,
    /// RSA of 4096 bits.
    Rsa4096,
}

/// What a leaf is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeafRequest {
    /// What it says.
    pub profile: Profile,
    /// How long it lives from now on; never longer than its issuer.
    pub lifetime: Duration,
    /// The algorithm of its key.
    pub key: KeyKind,
}

impl LeafRequest {
    /// A request for a P-256 leaf.
    pub fn new(profile: Profile, lifetime: Duration) -> Self {
        Self {
            profile,
            lifetime,
            key: KeyKind::P256,
        }
    }
}

/// An issued certificate. Cheap to clone.
#[derive(Clone)]
pub struct Leaf {
    chain: Arc<[Vec<u8>]>,
    chain_pem: Arc<str>,
    key: Arc<Zeroizing<Vec<u8>>>,
    form: KeyForm,
    certificate: Arc<Certificate>,
    /// The root's fingerprint, and the token by which the root counts its leaves.
    signer: Option<(Arc<str>, Arc<()>)>,
    issued: Timestamp,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.certificate.common_name.as_deref().unwrap_or_default();
        f.debug_struct("Leaf")
            .field("common_name", &name)
            .field("validity", &self.validity())
            .finish_non_exhaustive()
    }
}

impl Leaf {
    /// A leaf from PEM text: the chain, leaf first, without the root; and the key.
    ///
    /// # Errors
    /// [`IssueError::Answer`] when either cannot be read.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, IssueError> {
        let chain = chain_from_pem(chain).map_err(|error| IssueError::Answer(error.to_string()))?;
        let (form, key) = key_form(key).map_err(|error| IssueError::Answer(error.to_string()))?;
        Self::new(chain, form, Zeroizing::new(key), Timestamp::now())
    }

    pub(super) fn new(
        chain: Vec<Vec<u8>>,
        form: KeyForm,
        key: Zeroizing<Vec<u8>>,
        issued: Timestamp,
    ) -> Result<Self, IssueError> {
        let answer = |error: &dyn fmt::Display| IssueError::Answer(error.to_string());
        let first = chain.first().ok_or_else(|| answer(&"there is no certificate"))?;
        let certificate = Certificate::from_der(first).map_err(|error| answer(&error))?;
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let block = |der: &Vec<u8>| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.clone()), config);
        Ok(Self {
            chain_pem: chain.iter().map(block).collect::<String>().into(),
            chain: chain.into(),
            key: Arc::new(key),
            form,
            certificate: Arc::new(certificate),
            signer: None,
            issued,
        })
    }

    pub(super) fn signed_by(&mut self, fingerprint: Arc<str>, token: Arc<()>) {
        self.signer = Some((fingerprint, token));
    }

    /// The fingerprint of the root it was issued under; empty when nobody knows.
    pub fn signer(&self) -> &str {
        self.signer.as_ref().map_or("", |(fingerprint, _)| fingerprint)
    }

    /// The chain in PEM, leaf first.
    pub fn chain_pem(&self) -> &Arc<str> {
        &self.chain_pem
    }

    /// The chain in DER, leaf first.
    pub fn chain_der(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The private key in PEM. For Secrets and SDS, nothing else.
    pub fn key_pem(&self) -> Zeroizing<String> {
        let label = match self.form {
            KeyForm::Pkcs8 => "PRIVATE KEY",
            KeyForm::Pkcs1 => "RSA PRIVATE KEY",
            KeyForm::Sec1 => "EC PRIVATE KEY",
        };
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        Zeroizing::new(pem::encode_config(
            &pem::Pem::new(label, self.key.to_vec()),
            config,
        ))
    }

    /// The private key in DER.
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        private_key(self.form, &self.key)
    }

    /// The time it is good for.
    pub fn validity(&self) -> Validity {
        self.certificate.validity
    }

    /// When to renew it: between 40 % and 50 % of its life, by `jitter` (see [`Validity::renew_at`]). Its life counts
    /// from when it was issued: providers back-date by as much as they like.
    pub fn renew_at(&self, jitter: f64) -> Timestamp {
        self.counted().renew_at(jitter)
    }

    /// Whether half its life is over, or it is not valid at all: renewal cannot wait.
    pub fn due(&self, now: Timestamp) -> bool {
        !self.validity().contains(now) || now >= self.renew_at(0.0)
    }

    fn counted(&self) -> Validity {
        Validity {
            not_before: self.issued.checked_sub(BACKDATE).unwrap_or(Timestamp::MIN),
            not_after: self.validity().not_after,
        }
    }

    /// What it says.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// It as the engine takes it.
    pub fn to_service_certificate(&self) -> ServiceCertificate {
        ServiceCertificate {
            chain: self.chain_pem.clone(),
            key: self.key_pem().as_str().into(),
        }
    }
}

/// A private key as TLS libraries take it.
pub(super) fn private_key(form: KeyForm, der: &[u8]) -> PrivateKeyDer<'static> {
    match form {
        KeyForm::Pkcs8 => PrivatePkcs8KeyDer::from(der.to_vec()).into(),
        KeyForm::Pkcs1 => PrivatePkcs1KeyDer::from(der.to_vec()).into(),
        KeyForm::Sec1 => PrivateSec1KeyDer::from(der.to_vec()).into(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use osm_core::identity::TrustDomain;

    use super::*;
    use crate::issuer::Authority;

    /// However much a provider back-dates, half of what was asked for is left when renewal is due at the latest.
    #[test]
    fn life_counts_from_when_it_was_issued() {
        let now = Timestamp::now();
        let root = Authority::generate(KeyKind::P256, now).unwrap();
        let authority = Authority::load(&root, now).unwrap();
        let request = LeafRequest::new(Profile::ads(&TrustDomain::default()), Duration::from_secs(600));
        let leaf = authority.sign(&request, now).unwrap();
        for backdated in [0, 30, 300, 3_600] {
            let issued = leaf.validity().not_before + SignedDuration::from_secs(backdated);
            let life = leaf.validity().not_after.duration_since(issued).as_secs();
            let leaf = Leaf {
                issued,
                ..leaf.clone()
            };
            if life <= 0 {
                assert!(leaf.due(leaf.validity().not_after), "over before it began");
                continue;
            }
            let at = |jitter| {
                leaf.validity()
                    .not_after
                    .duration_since(leaf.renew_at(jitter))
                    .as_secs()
            };
            assert!(
                (at(0.0) - life / 2).abs() <= 1,
                "{backdated}: {} of {life}",
                at(0.0)
            );
            assert!(at(1.0) > at(0.0) && at(1.0) <= life, "{backdated}");
        }
    }
}
