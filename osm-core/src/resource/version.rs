//! The version of a resource: a hash of its bytes.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// The first 128 bits of the BLAKE3 hash of a resource's encoded `Any`; 22 characters of base64url on the wire.
///
/// Cryptographic, because tenants can influence what is hashed: nobody may construct two configurations of one
/// version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u128);

impl Version {
    /// The version of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = blake3::hash(bytes);
        let mut first = [0; 16];
        first.copy_from_slice(&hash.as_bytes()[..16]);
        #[cfg(feature = "sabotage")]
        if crate::sabotage::Fault::RandomVersions.is_on() {
            return Self(u128::from_be_bytes(first) ^ u128::from(crate::sabotage::noise()));
        }
        Self(u128::from_be_bytes(first))
    }

    /// Its 16 bytes, for a file.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The version of these bytes, as [`Version::to_bytes`] gave them.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that no version of ours displays as: another server's, or noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a version of this control plane")]
pub struct ForeignVersion;

impl FromStr for Version {
    type Err = ForeignVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As much as the decoder asks for; proxies that come back report thousands.
        let mut bytes = [0; 18];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(16) => Ok(Self(u128::from_be_bytes(
                bytes[..16].try_into().map_err(|_| ForeignVersion)?,
            ))),
            _ => Err(ForeignVersion),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_back_and_foreign_ones_refused() {
        let version = Version::of(b"configuration");
        assert_eq!(version.to_string().len(), 22);
        assert_eq!(version.to_string().parse(), Ok(version));
        assert_ne!(version, Version::of(b"configuratiom"));
        for foreign in ["", "1", "9f86d081884c7d65", &"A".repeat(1_000)] {
            assert_eq!(foreign.parse::<Version>(), Err(ForeignVersion));
        }
    }
}
