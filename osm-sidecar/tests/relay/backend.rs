//! A service of the mesh: HTTP over mutual TLS, with the certificate of its service account.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use hyper::{Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use osm_core::{
    certificate::Profile,
    envoy,
    identity::{ServiceIdentity, TrustDomain},
    ir::{
        ClusterEndpoints, ClusterKey, Endpoint, Forward, OutboundChain, OutboundListener, Protocol, Settings,
        TargetPort,
    },
    resource::{Resource, ResourceType},
};
use osm_proto::envoy::config::core::v3::{address, socket_address};
use osm_runtime::tls::{self, ClientRoots, ServerCertificate};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{server::Pki, shop};

/// Answers every request with 200. Lives as long as the test's runtime.
pub(crate) async fn start(pki: &Pki) -> SocketAddr {
    let certificate = ServerCertificate::new();
    let bookstore = ServiceIdentity::new("shop", "bookstore");
    let leaf = pki
        .leaf(Profile::service(&bookstore, &TrustDomain::default()))
        .await;
    certificate.set(&leaf).unwrap();
    let clients = ClientRoots::new();
    clients.set(&pki.roots()).unwrap();
    let mut config = (*tls::ads(&certificate, &clients).unwrap()).clone();
    config.alpn_protocols = vec![b"osm".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new("books".to_owned())) });
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    address
}

/// The endpoints of the shop's one service.
pub(crate) fn endpoints(addresses: &[SocketAddr]) -> Arc<Resource> {
    let endpoints = addresses.iter().map(|address| Endpoint {
        address: address.ip(),
        port: address.port(),
    });
    let message = envoy::endpoints(&ClusterEndpoints {
        key: ClusterKey {
            service: shop::store(),
            target_port: TargetPort::Number(14001),
        },
        endpoints: endpoints.collect(),
    });
    Resource::new(ResourceType::Endpoint, message.cluster_name.clone(), &message)
}

/// The outbound listener, which takes requests for the shop's service at any port: there is no redirection here.
pub(crate) fn listener(settings: &Settings) -> Arc<Resource> {
    let chain = OutboundChain {
        name: "outbound_shop/bookstore_80_http".into(),
        port: 80,
        addresses: vec!["10.96.0.1".parse().unwrap()],
        protocol: Protocol::Http,
        forward: Forward::Routes(shop::route_name()),
    };
    let outbound = OutboundListener {
        chains: vec![chain],
        passthrough: false,
        ipv6: false,
    };
    let mut listener = envoy::outbound_listener(&outbound, settings);
    listener.listener_filters.clear();
    listener.filter_chains[0].filter_chain_match = None;
    if let Some(address::Address::SocketAddress(socket)) = listener
        .address
        .as_mut()
        .and_then(|address| address.address.as_mut())
    {
        socket.address = "127.0.0.1".into();
        socket.port_specifier = Some(socket_address::PortSpecifier::PortValue(0));
    }
    Resource::new(ResourceType::Listener, listener.name.clone(), &listener)
}
