//! The listeners of a sidecar.
//!
//! Invariant: a listener keeps its name, address and listener filters for life. Envoy then applies every change as a
//! change of filter chains, which drains the connections of the chains that changed and of no other.

mod inbound;
mod outbound;
mod prometheus;

use std::net::{IpAddr, Ipv4Addr};

use osm_proto::envoy::{
    config::{
        core::v3::{Address, TrafficDirection},
        listener::v3::{Listener, ListenerFilter, listener_filter::ConfigType},
    },
    extensions::filters::listener::original_dst::v3::OriginalDst,
};
use prost::{Message, Name};

pub use inbound::inbound_listener;
pub use outbound::outbound_listener;
pub use prometheus::prometheus_listener;

use super::parts::{any, ip_address};

/// All IPv4 addresses of the pod. A second, IPv6 address could be added (`additional_addresses`) where pods have one;
/// it must not be where they have not, since Envoy would fail to bind.
fn everywhere(port: u16) -> Address {
    ip_address(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

fn listener(name: &str, port: u16, direction: TrafficDirection) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(everywhere(port)),
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
