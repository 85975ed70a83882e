//! The file format: a header, then records one after another.
//!
//! A record is its payload's length (4 bytes, little endian), 16 bytes of the payload's BLAKE3 hash, and the payload; a
//! resource's body comes last in it, so that it can be read without the rest. Invariant: reading never panics and stops
//! at the first record that is not whole, which is where a killed writer left off.

use crate::resource::{ResourceType, Version};

/// Names the format. Whatever begins otherwise is not read.
pub(super) const HEADER: &[u8; 16] = b"osm-relay-kept/1";
/// Bytes before a record's payload.
pub(super) const HEAD: usize = 4 + 16;
/// Bytes of a kept resource's payload before its name: tag, kind, length of the name, version.
const KEEP_HEAD: usize = 1 + 1 + 2 + 16;

const KEEP: u8 = 1;
const DROP: u8 = 2;
const COMPLETE: u8 = 3;

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Keep {
        kind: ResourceType,
        name: &'a str,
        version: Version,
        body: &'a [u8],
    },
    Drop {
        kind: ResourceType,
        name: &'a str,
    },
    Complete,
}

impl Record<'_> {
    /// Appends the record. Returns its length, or `None`, with nothing appended, if it cannot be written in this format.
    pub(super) fn write(&self, buffer: &mut Vec<u8>) -> Option<u32> {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; HEAD]);
        let (name, body): (&str, &[u8]) = match self {
            Self::Keep {
                kind,
                name,
                version,
                body,
            } => {
                buffer.extend_from_slice(&[KEEP, *kind as u8]);
                buffer.extend_from_slice(&(name.len() as u16).to_le_bytes());
                buffer.extend_from_slice(&version.to_bytes());
                (name, body)
            }
            Self::Drop { kind, name } => {
                buffer.extend_from_slice(&[DROP, *kind as u8]);
                (name, &[])
            }
            Self::Complete => {
                buffer.push(COMPLETE);
                ("", &[])
            }
        };
        buffer.extend_from_slice(name.as_bytes());
        buffer.extend_from_slice(body);
        let payload = u32::try_from(buffer.len() - start - HEAD);
        let (Ok(payload), true) = (payload, name.len() <= usize::from(u16::MAX)) else {
            buffer.truncate(start);
            return None;
        };
        let hash = hash(&buffer[start + HEAD..]);
        buffer[start..start + 4].copy_from_slice(&payload.to_le_bytes());
        buffer[start + 4..start + HEAD].copy_from_slice(&hash);
        Some(payload.saturating_add(HEAD as u32))
    }

    /// The first record of `bytes` and how long it is; `None` if it is not whole.
    pub(super) fn read(bytes: &[u8]) -> Option<(Record<'_>, u32)> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (expected, rest) = rest.split_first_chunk::<16>()?;
        let length = u32::from_le_bytes(*length);
        let payload = rest.get(..usize::try_from(length).ok()?)?;
        if hash(payload) != *expected {
            return None;
        }
        Some((Self::parse(payload)?, length.checked_add(HEAD as u32)?))
    }

    fn parse(payload: &[u8]) -> Option<Record<'_>> {
        let kind = |byte: u8| ResourceType::ALL.get(usize::from(byte)).copied();
        match payload {
            [KEEP, number, low, high, rest @ ..] => {
                let (version, rest) = rest.split_first_chunk::<16>()?;
                let (name, body) = rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
                Some(Record::Keep {
                    kind: kind(*number)?,
                    name: std::str::from_utf8(name).ok()?,
                    version: Version::from_bytes(*version),
                    body,
                })
            }
            [DROP, number, name @ ..] => Some(Record::Drop {
                kind: kind(*number)?,
                name: std::str::from_utf8(name).ok()?,
            }),
            [COMPLETE] => Some(Record::Complete),
            _ => None,
        }
    }
}

/// Where the body of a kept resource begins in its record.
pub(super) fn body_offset(name: &str) -> u32 {
    (HEAD + KEEP_HEAD + name.len()) as u32
}

fn hash(payload: &[u8]) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(payload).as_bytes()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_read_back_and_the_body_is_where_it_is_said_to_be() {
        let keep = Record::Keep {
            kind: ResourceType::Secret,
            name: "service-cert",
            version: Version::of(b"1"),
            body: b"key",
        };
        let dropped = Record::Drop {
            kind: ResourceType::Listener,
            name: "x",
        };
        let mut bytes = Vec::new();
        let mut at = 0;
        for record in [keep, dropped, Record::Complete] {
            let length = record.write(&mut bytes).expect("it can be written");
            assert_eq!(Record::read(&bytes[at..]), Some((record, length)));
            at += length as usize;
        }
        let from = body_offset("service-cert") as usize;
        assert_eq!(&bytes[from..from + 3], b"key");
    }

    #[test]
    fn a_name_that_does_not_fit_writes_nothing() {
        let mut bytes = b"before".to_vec();
        let name = "n".repeat(70_000);
        let record = Record::Keep {
            kind: ResourceType::Cluster,
            name: &name,
            version: Version::of(b""),
            body: b"",
        };
        assert_eq!(record.write(&mut bytes), None);
        assert_eq!(bytes, b"before");
    }

    proptest! {
        #[test]
        fn a_record_that_is_cut_or_changed_is_not_read(cut in 0_usize..200, flip in 0_usize..200) {
            let record = Record::Keep {
                kind: ResourceType::Route,
                name: "route",
                version: Version::of(b"1"),
                body: &[7; 100],
            };
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            if cut < bytes.len() {
                prop_assert_eq!(Record::read(&bytes[..cut]), None);
            }
            let place = flip % bytes.len();
            bytes[place] ^= 1;
            prop_assert_eq!(Record::read(&bytes), None);
        }

        #[test]
        fn noise_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::read(&bytes);
            let _ = Record::parse(&bytes);
        }
    }
}
