//! A proxy's incremental request, as far as it is read.
//!
//! A proxy that comes back says of each of its resources which version it has, in any order: a thousand services are
//! hundreds of kilobytes, and thousands of proxies come at once. So names and versions are slices of the bytes that were
//! received, and the node, which is not read, is skipped. Must not remember anything: what a stream keeps, it interns.
//! Invariant: whatever this reads of a request, the generated message reads too.

use std::str;

use bytes::Bytes;
use osm_proto::google::rpc::Status;

use super::StreamError;

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`, lean. Decoded from [`Bytes`], it copies no name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaRequest {
    /// Of which type it speaks.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names that are subscribed to.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub resource_names_subscribe: Vec<Bytes>,
    /// Names that are no longer subscribed to.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<Bytes>,
    /// What the proxy has from before.
    #[prost(message, repeated, tag = "5")]
    pub initial_resource_versions: Vec<HeldVersion>,
    /// Which response it answers; empty if none.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why that response is rejected.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// An entry of `initial_resource_versions`: on the wire, a map is a list of these.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeldVersion {
    /// The resource's name.
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// Its version.
    #[prost(bytes = "bytes", tag = "2")]
    pub version: Bytes,
}

/// Names as texts, in their order.
///
/// # Errors
/// [`StreamError::NotText`], as the type of these fields is `string`.
pub(super) fn texts(names: &[Bytes]) -> Result<Vec<&str>, StreamError> {
    names.iter().map(text).collect()
}

fn text(bytes: &Bytes) -> Result<&str, StreamError> {
    str::from_utf8(bytes).map_err(|_| StreamError::NotText)
}

/// What a proxy reports to have: names and versions, ordered by name, each name once.
#[derive(Debug)]
pub(super) struct Reported<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Reported<'a> {
    /// Of several entries of one name the last counts, as in every map of protobuf.
    ///
    /// # Errors
    /// [`StreamError::NotText`].
    pub(super) fn new(entries: &'a [HeldVersion]) -> Result<Self, StreamError> {
        let entries = entries.iter().rev();
        let entries = entries.map(|entry| Ok((text(&entry.name)?, text(&entry.version)?)));
        let mut entries = entries.collect::<Result<Vec<_>, StreamError>>()?;
        entries.sort_by_key(|(name, _)| *name);
        entries.dedup_by_key(|(name, _)| *name);
        Ok(Self(entries))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &'a str> {
        self.0.iter().map(|(name, _)| *name)
    }

    /// Names and versions.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().copied()
    }

    /// Those of `names` that are not reported. Cheapest for names that are ordered.
    pub(super) fn lacks<'b>(&self, names: &'b [&'b str]) -> impl Iterator<Item = &'b str> {
        let mut next = 0;
        names.iter().copied().filter(move |name| {
            let found = match self.0.get(next) {
                Some((expected, _)) if expected == name => Ok(next),
                _ => self.0.binary_search_by_key(name, |(name, _)| name),
            };
            next = found.map_or_else(|index| index, |index| index + 1);
            found.is_err()
        })
    }
}

#[cfg(test)]
mod tests {
    use osm_proto::envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::xds::tests::rejection;

    fn entry(name: &'static str, version: &'static str) -> HeldVersion {
        HeldVersion {
            name: name.into(),
            version: version.into(),
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_the_generated_message_reads(
            subscribe in prop::collection::vec(".{0,20}", 0..4),
            unsubscribe in prop::collection::vec(".{0,20}", 0..4),
            held in prop::collection::btree_map(".{0,20}", ".{0,20}", 0..4),
            type_url in ".{0,9}",
            nonce in ".{0,9}",
            rejected: bool,
        ) {
            let request = DeltaDiscoveryRequest {
                node: Some(Node { id: "a".into(), ..Default::default() }),
                type_url,
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                initial_resource_versions: held,
                response_nonce: nonce,
                error_detail: rejected.then(rejection).flatten(),
                ..Default::default()
            };
            let lean = DeltaRequest::decode(request.encode_to_vec().as_slice()).unwrap();
            prop_assert_eq!(&lean.type_url, &request.type_url);
            prop_assert_eq!(texts(&lean.resource_names_subscribe).unwrap(), request.resource_names_subscribe);
            prop_assert_eq!(texts(&lean.resource_names_unsubscribe).unwrap(), request.resource_names_unsubscribe);
            prop_assert_eq!(&lean.response_nonce, &request.response_nonce);
            prop_assert_eq!(&lean.error_detail, &request.error_detail);
            let reported = Reported::new(&lean.initial_resource_versions).unwrap();
            let held = request.initial_resource_versions.iter();
            prop_assert!(reported.iter().eq(held.map(|(name, version)| (name.as_str(), version.as_str()))));
        }

        #[test]
        fn what_is_lacked_is_found_in_any_order(held in prop::collection::vec("[a-h]", 0..8), names in prop::collection::vec("[a-h]", 0..8)) {
            let entries: Vec<_> = held
                .iter()
                .map(|name| HeldVersion { name: name.clone().into(), version: Bytes::new() })
                .collect();
            let reported = Reported::new(&entries).unwrap();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let lacked = names.iter().filter(|name| !held.iter().any(|held| held == *name));
            prop_assert!(reported.lacks(&names).eq(lacked.copied()));
        }
    }

    #[test]
    fn names_are_slices_of_what_was_received() {
        let request = DeltaRequest {
            resource_names_subscribe: vec!["name".into()],
            initial_resource_versions: vec![entry("held", "1")],
            ..Default::default()
        };
        let received = Bytes::from(request.encode_to_vec());
        let lean = DeltaRequest::decode(received.clone()).unwrap();
        let held = &lean.initial_resource_versions[0];
        for slice in [&lean.resource_names_subscribe[0], &held.name, &held.version] {
            assert!(
                received.as_ptr_range().contains(&slice.as_ptr()),
                "{slice:?} was copied"
            );
        }
    }

    #[test]
    fn the_last_of_equal_names_counts() {
        let entries = [entry("b", "1"), entry("a", "2"), entry("b", "3")];
        let reported = Reported::new(&entries).unwrap();
        assert_eq!(reported.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let bytes = Bytes::from_static(&[0xff]);
        assert_eq!(texts(std::slice::from_ref(&bytes)), Err(StreamError::NotText));
        let held = HeldVersion {
            version: bytes,
            ..Default::default()
        };
        assert_eq!(Reported::new(&[held]).err(), Some(StreamError::NotText));
    }
}
