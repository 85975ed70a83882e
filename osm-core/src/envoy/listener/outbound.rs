//! The listener that the pod's outgoing connections are redirected to.

use std::net::IpAddr;

use osm_proto::envoy::config::{
    core::v3::{CidrRange, TrafficDirection},
    listener::v3::{FilterChain, FilterChainMatch, Listener, listener::DrainType},
};

use super::{listener, original_destination};
use crate::{
    api::{names::OUTBOUND_LISTENER, ports::OUTBOUND},
    envoy::{access_log::refusal_log, http, tcp},
    ir::{Forward, OutboundChain, OutboundListener, Settings},
};

/// The LDS resource.
///
/// A chain is chosen by the address and port the application connected to, and by nothing the application sends. So
/// no inspector is needed, and none may be here: an inspector holds back the first bytes until it knows what they
/// are, which takes the whole listener filter timeout for a protocol it does not know, or when the server speaks
/// first. HTTP/1 is told from HTTP/2 by the HTTP connection manager.
pub fn outbound_listener(outbound: &OutboundListener, settings: &Settings) -> Listener {
    let filter_chains: Vec<_> = outbound
        .chains
        .iter()
        .map(|chain| filter_chain(chain, settings))
        .collect();
    let default_filter_chain = match outbound.passthrough {
        true => Some(passthrough()),
        false if filter_chains.is_empty() => Some(tcp::closed_chain()),
        false => None,
    };
    Listener {
        filter_chains,
        default_filter_chain,
        listener_filters: vec![original_destination()],
        access_log: vec![refusal_log()],
        // Envoy drains when it is told to fail its health check, as a pod that terminates may do; the application
        // still needs its connections then.
        drain_type: DrainType::ModifyOnly.into(),
        ..listener(
            OUTBOUND_LISTENER,
            OUTBOUND,
            TrafficDirection::Outbound,
            outbound.ipv6,
        )
    }
}

fn filter_chain(chain: &OutboundChain, settings: &Settings) -> FilterChain {
    let filter = match &chain.forward {
        Forward::Routes(name) => http::outbound(format!("rds-outbound.{}", chain.port), name, settings),
        Forward::Clusters(clusters) => tcp::outbound(&chain.name, clusters),
    };
    FilterChain {
        name: chain.name.clone(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(chain.port.into()),
            prefix_ranges: chain.addresses.iter().map(single_address).collect(),
            ..Default::default()
        }),
        filters: vec![filter],
        ..Default::default()
    }
}

fn single_address(address: &IpAddr) -> CidrRange {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    CidrRange {
        address_prefix: address.to_string(),
        prefix_len: Some(bits),
    }
}

/// Lets traffic that is not for the mesh out as it is, to where it was going.
fn passthrough() -> FilterChain {
    FilterChain {
        name: "outbound-egress-filter-chain".to_owned(),
        filters: vec![tcp::passthrough()],
        ..Default::default()
    }
}
