//! Encoded resources, their content-hash versions, and the snapshot that all streams read.
//!
//! Owns the bytes Envoy is sent. Invariants: a [`Resource`] never changes once made; its [`Version`] is a hash of its
//! encoded bytes and of nothing else, so that equal configuration has equal versions in every process; a [`Snapshot`]
//! is immutable and consistent: whatever one of its views names is in its table or is about to be (certificates).

mod snapshot;
mod type_set;
mod version;

use std::sync::Arc;

use bytes::Bytes;
use osm_proto::envoy::service::discovery::v3 as discovery;
use prost::{Message, Name};

pub use snapshot::{ClassId, ProxyEntry, Slot, Snapshot, View};
pub use type_set::{TypeSet, TypeSetEntry, TypeSetIter};
pub use version::Version;

/// The kinds of resources a sidecar subscribes to, in the order they are sent: make before break
/// (xDS protocol, "Eventual consistency considerations").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
    Secret,
}

impl ResourceType {
    /// All kinds, in sending order.
    pub const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::Route,
        Self::Secret,
    ];

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind of a type URL; `None` for one this server does not speak.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a client may subscribe to all resources of the kind: only clusters and listeners
    /// (a proxy asks for the rest by the names it found in them).
    pub fn allows_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// One resource, encoded once and shared by every proxy that uses it.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    kind: ResourceType,
    name: Arc<str>,
    version: Version,
    encoded: Bytes,
    any: std::ops::Range<usize>,
}

impl Resource {
    /// Encodes `message` as the resource `name` of kind `kind`.
    ///
    /// `message` must be of the kind's type: in debug builds anything else panics.
    pub fn new<M: Message + Name>(kind: ResourceType, name: impl Into<Arc<str>>, message: &M) -> Arc<Self> {
        debug_assert_eq!(kind.type_url(), M::type_url());
        let name = name.into();
        let any = prost_types::Any {
            type_url: kind.type_url().to_owned(),
            value: message.encode_to_vec(),
        };
        let any_encoded = any.encode_to_vec();
        let version = Version::of(&any_encoded);
        let wire = discovery::Resource {
            name: name.to_string(),
            version: version.to_string(),
            resource: Some(any),
            ..Default::default()
        };
        let encoded = Bytes::from(wire.encode_to_vec());
        // Field 2 (`resource`) is written before field 3 (`name`) and after field 1 (`version`): the payload is found
        // from the lengths around it, so that state-of-the-world responses can reuse it.
        let version_field = 2 + version.to_string().len();
        let header = 1 + prost::length_delimiter_len(any_encoded.len());
        let start = version_field + header;
        let any = start..start + any_encoded.len();
        debug_assert_eq!(&encoded[any.clone()], &any_encoded[..]);
        Arc::new(Self {
            kind,
            name,
            version,
            encoded,
            any,
        })
    }

    /// Its kind.
    pub fn kind(&self) -> ResourceType {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The bytes of a `discovery.v3.Resource`, as an entry of a delta response carries them.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The bytes of the `google.protobuf.Any`, as an entry of a state-of-the-world response carries them.
    pub fn any(&self) -> Bytes {
        self.encoded.slice(self.any.clone())
    }

    /// The same bytes as [`any`](Self::any), borrowed.
    pub fn any_bytes(&self) -> &[u8] {
        &self.encoded[self.any.clone()]
    }
}

#[cfg(test)]
mod tests {
    use osm_proto::envoy::config::cluster::v3::Cluster;

    use super::*;

    #[test]
    fn the_encoded_parts_decode_to_what_went_in() {
        for size in [0, 1, 200, 20_000] {
            let cluster = Cluster {
                name: "x".repeat(size),
                ..Default::default()
            };
            let resource = Resource::new(ResourceType::Cluster, "name", &cluster);
            let wire = discovery::Resource::decode(resource.encoded().clone()).expect("decodes");
            assert_eq!(wire.name, "name");
            assert_eq!(wire.version, resource.version().to_string());
            let any = prost_types::Any::decode(resource.any()).expect("decodes");
            assert_eq!(Some(&any), wire.resource.as_ref());
            assert_eq!(Cluster::decode(&any.value[..]).expect("decodes"), cluster);
        }
    }

    #[test]
    fn type_urls_are_those_of_the_generated_types() {
        use osm_proto::envoy::{
            config::{
                endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration,
            },
            extensions::transport_sockets::tls::v3::Secret,
        };
        let generated = [
            Cluster::type_url(),
            ClusterLoadAssignment::type_url(),
            Listener::type_url(),
            RouteConfiguration::type_url(),
            Secret::type_url(),
        ];
        assert_eq!(
            ResourceType::ALL.map(|kind| kind.type_url().to_owned()),
            generated
        );
    }
}
