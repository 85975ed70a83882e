//! The listener that the pod's incoming connections are redirected to.

use osm_proto::envoy::{
    config::{
        core::v3::TrafficDirection,
        listener::v3::{Filter, FilterChain, FilterChainMatch, Listener},
    },
    extensions::filters::listener::tls_inspector::v3::TlsInspector,
};

use super::{listener, listener_filter, original_destination};
use crate::{
    api::{names::INBOUND_LISTENER, ports::INBOUND},
    envoy::{access_log::refusal_log, http, rbac, subject, tcp, tls},
    identity::TrustDomain,
    ir::{Forward, InboundChain, InboundListener, Settings},
};

/// The LDS resource.
///
/// Only mutual TLS from another sidecar gets in: a chain is chosen by the port, the server name asked for and the
/// mesh's ALPN protocol, and there is no default. A client that says nothing is cut off by Envoy's own listener filter
/// timeout (15 s).
pub fn inbound_listener(inbound: &InboundListener, settings: &Settings) -> Listener {
    let filter_chains: Vec<_> = inbound
        .chains
        .iter()
        .map(|chain| filter_chain(chain, &inbound.trust_domain, settings))
        .collect();
    Listener {
        default_filter_chain: filter_chains.is_empty().then(tcp::closed_chain),
        filter_chains,
        listener_filters: vec![
            original_destination(),
            listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default()),
        ],
        access_log: vec![refusal_log()],
        ..listener(INBOUND_LISTENER, INBOUND, TrafficDirection::Inbound, inbound.ipv6)
    }
}

fn filter_chain(chain: &InboundChain, trust_domain: &TrustDomain, settings: &Settings) -> FilterChain {
    let clients = subject::of_clients(chain, trust_domain);
    let access = chain.access.as_ref().map(rbac::network_filter);
    FilterChain {
        name: chain.name.clone(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(chain.port.into()),
            server_names: vec![chain.server_name.clone()],
            transport_protocol: "tls".to_owned(),
            application_protocols: tls::alpn(),
            ..Default::default()
        }),
        transport_socket: Some(tls::downstream(&chain.name, clients, &settings.tls)),
        filters: access.into_iter().chain([forward(chain, settings)]).collect(),
        ..Default::default()
    }
}

fn forward(chain: &InboundChain, settings: &Settings) -> Filter {
    match &chain.forward {
        Forward::Routes(name) => http::inbound(name.clone(), name, chain.judges_paths, settings),
        Forward::Clusters(clusters) => tcp::inbound(&chain.name, clusters),
    }
}
