//! The small messages that many resources are made of: addresses, durations, packed payloads, where xDS comes from.

use std::net::{IpAddr, Ipv4Addr};

use osm_proto::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address, config_source,
    socket_address,
};
use prost::{Message, Name};
use prost_types::{Any, Duration};

/// Packs a message with its type.
pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Whole seconds. Zero means "no limit" in most of Envoy's fields.
pub(super) fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// Milliseconds.
pub(super) fn milliseconds(milliseconds: u64) -> Duration {
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    Duration {
        seconds: milliseconds / 1000,
        nanos: (milliseconds % 1000) as i32 * 1_000_000,
    }
}

/// A TCP address by number or name.
pub(super) fn tcp_address(host: impl Into<String>, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// A TCP address by number.
pub(super) fn ip_address(address: IpAddr, port: u16) -> Address {
    tcp_address(address.to_string(), port)
}

/// The pod's loopback.
pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// "Ask on the ADS stream, and wait for the answer however long it takes."
///
/// Envoy's default is to go on without the resource after 15 s. A proxy that starts while no controller answers would
/// then report itself ready with half a configuration, and close or misroute what it does not know.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: Some(seconds(0)),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}
