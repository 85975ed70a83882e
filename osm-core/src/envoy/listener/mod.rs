//! The listeners of a sidecar.
//!
//! Invariant: a listener keeps its name, addresses and listener filters as long as its pod keeps its addresses. Envoy
//! then applies every change as a change of filter chains, which drains the connections of the chains that changed and
//! of no other.

mod inbound;
mod outbound;
mod prometheus;

use std::net::{Ipv4Addr, Ipv6Addr};

use osm_proto::envoy::{
    config::{
        core::v3::TrafficDirection,
        listener::v3::{AdditionalAddress, Listener, ListenerFilter, listener_filter::ConfigType},
    },
    extensions::filters::listener::original_dst::v3::OriginalDst,
};
use prost::{Message, Name};

pub use inbound::inbound_listener;
pub use outbound::outbound_listener;
pub use prometheus::prometheus_listener;

use super::parts::{any, ip_address};

/// A listener at all IPv4 addresses of the pod, and with `ipv6` at all IPv6 addresses, too.
///
/// Two sockets, and not one for both: on a node whose kernel was started without IPv6 the second cannot be bound, and
/// Envoy would reject the listener. Such a node gives its pods no IPv6 address.
fn listener(name: &str, port: u16, direction: TrafficDirection, ipv6: bool) -> Listener {
    let also = ipv6.then(|| AdditionalAddress {
        address: Some(ip_address(Ipv6Addr::UNSPECIFIED.into(), port)),
        ..Default::default()
    });
    Listener {
        name: name.to_owned(),
        address: Some(ip_address(Ipv4Addr::UNSPECIFIED.into(), port)),
        additional_addresses: also.into_iter().collect(),
        traffic_direction: direction.into(),
        ..Default::default()
    }
}

/// Restores the address that a redirected connection was made to, for chains to match on.
fn original_destination() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default())
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}
