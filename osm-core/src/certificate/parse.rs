//! Reading X.509 certificates (RFC 5280), from PEM (RFC 7468) or DER.
//!
//! Owns the bounds on what is read. Invariant: hostile input gives an error, never a panic, and never more work than
//! [`MAX_PEM`] bytes deserve. Signatures are not checked here: TLS libraries do that.

use jiff::Timestamp;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Usage, Validity};

/// Longest PEM text that is looked at; a Secret holds at most 1 MiB, a chain a few KiB.
pub(super) const MAX_PEM: usize = 128 * 1024;
/// Most certificates in one text.
const MAX_CHAIN: usize = 32;
/// Most names read from one certificate.
const MAX_NAMES: usize = 256;

/// Why a text or bytes are not certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Too much of it.
    #[error("{0} bytes of PEM are too many: at most 131072 are read")]
    TooLong(usize),
    /// Not PEM.
    #[error("it is not PEM: {0}; expected -----BEGIN CERTIFICATE-----")]
    Pem(String),
    /// PEM of something else.
    #[error("a PEM block is a {0:?}, not a CERTIFICATE")]
    Label(String),
    /// No certificate in it.
    #[error("it holds no certificate")]
    Empty,
    /// Too many certificates in it.
    #[error("it holds more than 32 certificates")]
    TooMany,
    /// Not X.509.
    #[error("it is not an X.509 certificate: {0}")]
    X509(String),
    /// Something after the end of the certificate.
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    /// A date no clock shows.
    #[error("its validity cannot be represented")]
    Date,
    /// More names than any certificate of ours has.
    #[error("it has more than 256 names")]
    Names,
}

/// The DER certificates of a PEM text, in order: at least one.
///
/// # Errors
/// [`ParseError`] when the text is too long, is not PEM, holds anything but certificates, or holds none.
pub fn chain_from_pem(text: &str) -> Result<Vec<Vec<u8>>, ParseError> {
    if text.len() > MAX_PEM {
        return Err(ParseError::TooLong(text.len()));
    }
    let blocks = pem::parse_many(text).map_err(|error| ParseError::Pem(error.to_string()))?;
    match blocks.len() {
        0 => return Err(ParseError::Empty),
        1..=MAX_CHAIN => {}
        _ => return Err(ParseError::TooMany),
    }
    let der = |block: pem::Pem| match block.tag() {
        "CERTIFICATE" => Ok(block.into_contents()),
        other => Err(ParseError::Label(other.chars().take(64).collect())),
    };
    blocks.into_iter().map(der).collect()
}

/// What the mesh wants to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name, if it has exactly one.
    pub common_name: Option<String>,
    /// DNS names, in order.
    pub dns_names: Vec<String>,
    /// URIs, in order.
    pub uris: Vec<String>,
    /// Whether it has names of other kinds (addresses, mail, ...), which the mesh never issues.
    pub other_names: bool,
    /// The time it is good for.
    pub validity: Validity,
    /// Whether it is a CA (basic constraints), and its key usage, if stated, lets it sign certificates.
    pub is_ca: bool,
    /// What it proves in TLS; `None` when it does not say.
    pub usage: Option<Usage>,
    /// The encoded issuer name.
    pub issuer: Vec<u8>,
    /// The encoded subject name.
    pub subject: Vec<u8>,
    /// The encoded SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Reads one DER certificate.
    ///
    /// # Errors
    /// [`ParseError`] when it is malformed, or has dates or names beyond bounds.
    pub fn from_der(der: &[u8]) -> Result<Self, ParseError> {
        let malformed = |error: &dyn std::fmt::Display| ParseError::X509(error.to_string());
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(ParseError::Trailing(rest.len()));
        }
        let mut dns_names = Vec::new();
        let mut uris = Vec::new();
        let mut other_names = false;
        let alternative = parsed
            .subject_alternative_name()
            .map_err(|error| malformed(&error))?;
        for name in alternative
            .iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => other_names = true,
            }
            if dns_names.len() + uris.len() > MAX_NAMES {
                return Err(ParseError::Names);
            }
        }
        let mut common_names = parsed.subject().iter_common_name();
        let common_name = match (common_names.next(), common_names.next()) {
            (Some(only), None) => only.as_str().ok().map(str::to_owned),
            _ => None,
        };
        let signs = parsed.key_usage().map_err(|error| malformed(&error))?;
        let constraints = parsed.basic_constraints().map_err(|error| malformed(&error))?;
        let extended = parsed.extended_key_usage().map_err(|error| malformed(&error))?;
        let usage =
            extended.and_then(
                |extension| match (extension.value.client_auth, extension.value.server_auth) {
                    (true, true) => Some(Usage::Both),
                    (true, false) => Some(Usage::Client),
                    (false, true) => Some(Usage::Server),
                    (false, false) => None,
                },
            );
        Ok(Self {
            common_name,
            dns_names,
            uris,
            other_names,
            validity: Validity {
                not_before: timestamp(parsed.validity().not_before.timestamp())?,
                not_after: timestamp(parsed.validity().not_after.timestamp())?,
            },
            is_ca: constraints.is_some_and(|extension| extension.value.ca)
                && signs.is_none_or(|extension| extension.value.key_cert_sign()),
            usage,
            issuer: parsed.issuer().as_raw().to_vec(),
            subject: parsed.subject().as_raw().to_vec(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }
}

fn timestamp(seconds: i64) -> Result<Timestamp, ParseError> {
    Timestamp::from_second(seconds).map_err(|_| ParseError::Date)
}
