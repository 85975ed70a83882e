//! Root certificates: which are fit to be one.
//!
//! Owns the checks a root passes before anything is signed by it or trusted because of it. Invariant: a [`Root`] is a
//! single CA certificate whose encoding is canonical PEM; whether it is valid *now* is asked each time.

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Certificate, ParseError, Validity, chain_from_pem, parse::MAX_PEM};

/// A CA certificate that the mesh trusts. Compared, ordered and hashed by its DER bytes.
#[derive(Clone, Debug)]
pub struct Root {
    der: Arc<[u8]>,
    certificate: Arc<Certificate>,
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Root {}

impl PartialOrd for Root {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Root {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.der.cmp(&other.der)
    }
}

/// Why something is not fit to be the mesh's root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Not a certificate.
    #[error("the root certificate cannot be read: {0}")]
    Parse(#[from] ParseError),
    /// More than one certificate.
    #[error("there are {0} certificates where one root is expected; keep the root only")]
    Several(usize),
    /// A leaf.
    #[error("the root certificate is not a CA (basic constraints CA:TRUE, key usage keyCertSign)")]
    NotCa,
    /// It is over.
    #[error("the root certificate expired at {0}; rotate it, it is never replaced silently")]
    Expired(Timestamp),
    /// It has not begun.
    #[error("the root certificate is valid only from {0} on; check this node's clock")]
    NotYetValid(Timestamp),
    /// The key is another's.
    #[error("the private key does not belong to the root certificate")]
    KeyMismatch,
    /// The key cannot be read. Says nothing of its bytes.
    #[error(
        "the root's private key cannot be read: {0}; expected PEM of PKCS#8, PKCS#1 or SEC1, unencrypted"
    )]
    Key(&'static str),
}

impl Root {
    /// A root from its DER bytes.
    ///
    /// # Errors
    /// [`RootError::Parse`] or [`RootError::NotCa`].
    pub fn from_der(der: &[u8]) -> Result<Self, RootError> {
        let certificate = Certificate::from_der(der)?;
        if !certificate.is_ca {
            return Err(RootError::NotCa);
        }
        Ok(Self {
            der: der.into(),
            certificate: Arc::new(certificate),
        })
    }

    /// A root from PEM text that holds exactly one certificate.
    ///
    /// # Errors
    /// As [`Root::from_der`], and [`RootError::Several`].
    pub fn from_pem(text: &str) -> Result<Self, RootError> {
        let chain = chain_from_pem(text)?;
        match chain.as_slice() {
            [only] => Self::from_der(only),
            several => Err(RootError::Several(several.len())),
        }
    }

    /// Checks that it is valid at `now`.
    ///
    /// # Errors
    /// [`RootError::Expired`] or [`RootError::NotYetValid`].
    pub fn check_validity(&self, now: Timestamp) -> Result<(), RootError> {
        let Validity {
            not_before,
            not_after,
        } = self.validity();
        if now > not_after {
            Err(RootError::Expired(not_after))
        } else if now < not_before {
            Err(RootError::NotYetValid(not_before))
        } else {
            Ok(())
        }
    }

    /// Checks that a private key belongs to it, given the key's public half as an encoded SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`RootError::KeyMismatch`].
    pub fn check_key(&self, public_key: &[u8]) -> Result<(), RootError> {
        if self.certificate.public_key == public_key {
            Ok(())
        } else {
            Err(RootError::KeyMismatch)
        }
    }

    /// Its DER bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of its DER bytes in hexadecimal, as `openssl x509 -fingerprint -sha256` shows it without the colons.
    pub fn fingerprint(&self) -> String {
        let hash = Sha256::digest(&self.der);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Its PEM text, always encoded the same way.
    pub fn pem(&self) -> String {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_config(&pem::Pem::new("CERTIFICATE", self.der.to_vec()), config)
    }

    /// The time it is good for.
    pub fn validity(&self) -> Validity {
        self.certificate.validity
    }

    /// What it says.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}

/// The encodings of private keys that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// `PRIVATE KEY`, RFC 5208: what the mesh writes.
    Pkcs8,
    /// `RSA PRIVATE KEY`, RFC 8017.
    Pkcs1,
    /// `EC PRIVATE KEY`, RFC 5915.
    Sec1,
}

/// The private key in a PEM text, as its form and DER bytes. `EC PARAMETERS` blocks, which openssl writes in front of
/// a SEC1 key, are skipped. The bytes are the caller's to wipe.
///
/// # Errors
/// [`RootError::Key`] when there is no key, more than one, or an encrypted one.
pub fn key_form(text: &str) -> Result<(KeyForm, Vec<u8>), RootError> {
    if text.len() > MAX_PEM {
        return Err(RootError::Key("it is too long"));
    }
    let blocks = pem::parse_many(text).map_err(|_| RootError::Key("it is not PEM"))?;
    let mut found = None;
    for block in blocks {
        let form = match block.tag() {
            "PRIVATE KEY" => KeyForm::Pkcs8,
            "RSA PRIVATE KEY" if block.headers().iter().next().is_none() => KeyForm::Pkcs1,
            "EC PRIVATE KEY" if block.headers().iter().next().is_none() => KeyForm::Sec1,
            "EC PARAMETERS" => continue,
            "ENCRYPTED PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
                return Err(RootError::Key("it is encrypted"));
            }
            _ => return Err(RootError::Key("it is PEM of something else")),
        };
        if found.is_some() {
            return Err(RootError::Key("there is more than one key"));
        }
        found = Some((form, block.into_contents()));
    }
    found.ok_or(RootError::Key("there is no key"))
}
