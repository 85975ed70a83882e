//! Envoy messages as JSON, the way Envoy itself reads and prints them (the canonical protobuf mapping).
//!
//! Owns the reflection over the generated API. For configuration files, debug pages and golden tests; never on the
//! way to a proxy, which is sent the binary form.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(osm_proto::FILE_DESCRIPTOR_SET).expect("osm-proto's descriptors are well formed")
});

/// The canonical JSON of a message; `Any` payloads are spelled out, fields at their default are left out.
///
/// For messages that this process made. Panics if the message is not of `osm_proto` or packs an `Any` that is not.
pub fn to_json<M: Message + Name>(message: &M) -> serde_json::Value {
    let name = M::full_name();
    let descriptor = POOL.get_message_by_name(&name).expect("a message of osm-proto");
    let message = DynamicMessage::decode(descriptor, &message.encode_to_vec()[..]).expect("just encoded");
    message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .expect("every Any packs a message of osm-proto")
}

#[cfg(test)]
mod tests {
    use osm_proto::envoy::config::core::v3::TransportSocket;
    use serde_json::json;

    use super::*;
    use crate::envoy::{parts::any, tls::alpn};

    #[test]
    fn payloads_are_spelled_out() {
        use osm_proto::envoy::config::core::v3::transport_socket::ConfigType;
        use osm_proto::envoy::extensions::transport_sockets::tls::v3::CommonTlsContext;
        let tls = CommonTlsContext {
            alpn_protocols: alpn(),
            ..Default::default()
        };
        let socket = TransportSocket {
            name: "tls".into(),
            config_type: Some(ConfigType::TypedConfig(any(&tls))),
        };
        let expected = json!({ "name": "tls", "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
            "alpnProtocols": ["osm"],
        }});
        assert_eq!(to_json(&socket), expected);
    }
}
