//! Discovery responses, read without being unpacked.
//!
//! Owns what a fake Envoy looks at of a response: names, versions, the nonce. Bodies are passed over as they are, so
//! that thousands of fake Envoys fit beside the server they load. Must not panic on anything a server sends.

use anyhow::{Context, Result, bail};

/// The value of one field of a message, as far as the wire tells.
enum Value<'a> {
    Bytes(&'a [u8]),
    Other,
}

/// The fields of an encoded message, in the order they come.
struct Fields<'a> {
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, left) = self
                .left
                .split_first()
                .context("a message ends inside a number")?;
            self.left = left;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number is too long")
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let length = usize::try_from(length)?;
        let taken = self.left.get(..length).context("a message ends inside a field")?;
        self.left = &self.left[length..];
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => self.varint().map(|_| Value::Other)?,
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            other => bail!("a field of unknown wire type {other}"),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Calls `each` with the number and the bytes of every length-delimited field of a message.
fn visit<'a>(message: &'a [u8], mut each: impl FnMut(u64, &'a [u8]) -> Result<()>) -> Result<()> {
    let mut fields = Fields { left: message };
    while let Some((number, value)) = fields.next()? {
        if let Value::Bytes(bytes) = value {
            each(number, bytes)?;
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).context("a text is not UTF-8")
}

/// One resource of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resource<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its version; empty in the state-of-the-world variant, which has one for all.
    pub(crate) version: &'a str,
    /// The encoded cluster, listener and so on.
    pub(crate) body: &'a [u8],
}

/// A response of either variant.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Response<'a> {
    /// The type of its resources.
    pub(crate) type_url: &'a str,
    /// What an answer must repeat.
    pub(crate) nonce: &'a str,
    /// The version of the whole, in the state-of-the-world variant.
    pub(crate) version: &'a str,
    /// What is new or has changed.
    pub(crate) resources: Vec<Resource<'a>>,
    /// Names of what is gone.
    pub(crate) removed: Vec<&'a str>,
}

/// Reads a `DeltaDiscoveryResponse`.
pub(crate) fn delta(message: &[u8]) -> Result<Response<'_>> {
    let mut response = Response::default();
    visit(message, |number, bytes| {
        match number {
            2 => {
                let mut resource = Resource::default();
                visit(bytes, |number, bytes| {
                    match number {
                        1 => resource.version = text(bytes)?,
                        2 => resource.body = packed(bytes)?,
                        3 => resource.name = text(bytes)?,
                        _ => {}
                    }
                    Ok(())
                })?;
                response.resources.push(resource);
            }
            4 => response.type_url = text(bytes)?,
            5 => response.nonce = text(bytes)?,
            6 => response.removed.push(text(bytes)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(response)
}

/// Reads a `DiscoveryResponse`. The name of every kind of resource is its first field.
pub(crate) fn state(message: &[u8]) -> Result<Response<'_>> {
    let mut response = Response::default();
    visit(message, |number, bytes| {
        match number {
            1 => response.version = text(bytes)?,
            2 => {
                let body = packed(bytes)?;
                let mut resource = Resource {
                    body,
                    ..Resource::default()
                };
                visit(body, |number, bytes| {
                    if number == 1 && resource.name.is_empty() {
                        resource.name = text(bytes)?;
                    }
                    Ok(())
                })?;
                response.resources.push(resource);
            }
            4 => response.type_url = text(bytes)?,
            5 => response.nonce = text(bytes)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(response)
}

/// The value of a `google.protobuf.Any`.
fn packed(any: &[u8]) -> Result<&[u8]> {
    let mut value = &any[..0];
    visit(any, |number, bytes| {
        if number == 2 {
            value = bytes;
        }
        Ok(())
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use osm_proto::envoy::{
        config::cluster::v3::Cluster,
        service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource as Encoded},
    };
    use prost::Message as _;
    use prost_types::Any;

    use super::*;

    fn cluster() -> Any {
        let cluster = Cluster {
            name: "shop/web|80".into(),
            alt_stat_name: "x".into(),
            ..Default::default()
        };
        Any {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
            value: cluster.encode_to_vec(),
        }
    }

    #[test]
    fn both_variants_are_read() {
        let encoded = DeltaDiscoveryResponse {
            system_version_info: "s".into(),
            type_url: "t".into(),
            nonce: "7".into(),
            resources: vec![Encoded {
                name: "shop/web|80".into(),
                version: "v".into(),
                resource: Some(cluster()),
                ..Default::default()
            }],
            removed_resources: vec!["gone".into()],
            ..Default::default()
        }
        .encode_to_vec();
        let response = delta(&encoded).unwrap();
        assert_eq!((response.type_url, response.nonce), ("t", "7"));
        assert_eq!(response.removed, ["gone"]);
        assert_eq!(response.resources[0].name, "shop/web|80");
        assert_eq!(response.resources[0].version, "v");
        assert_eq!(response.resources[0].body, cluster().value);

        let encoded = DiscoveryResponse {
            version_info: "w".into(),
            type_url: "t".into(),
            nonce: "8".into(),
            resources: vec![cluster()],
            ..Default::default()
        }
        .encode_to_vec();
        let response = state(&encoded).unwrap();
        assert_eq!((response.version, response.nonce), ("w", "8"));
        assert_eq!(response.resources[0].name, "shop/web|80");
    }

    #[test]
    fn damaged_responses_are_errors() {
        let encoded = DeltaDiscoveryResponse {
            resources: vec![Encoded {
                name: "a".repeat(300),
                ..Default::default()
            }],
            ..Default::default()
        }
        .encode_to_vec();
        for length in 1..encoded.len() {
            assert!(delta(&encoded[..length]).is_err(), "{length}");
        }
        assert!(delta(&[0x0f]).is_err());
        assert!(delta(&[0xff; 20]).is_err());
    }
}
