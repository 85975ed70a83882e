//! What the relay costs, by the number of services its proxy calls.

use std::{fs, sync::Arc};

use osm_core::{
    certificate::Profile,
    envoy,
    identity::TrustDomain,
    ir::{
        ClusterEndpoints, ClusterKey, Endpoint, Forward, OutboundChain, OutboundListener, OutboundRoutes,
        Protocol, ServiceKey, Settings, TargetPort, UpstreamCluster, ValidationContext, WeightedCluster,
    },
    resource::{Resource, ResourceType},
};

use crate::{
    pod::{Pod, size},
    server::{Pki, Server, proxy},
    shop::{self, Shop},
};

/// A client of so many services, each of two pods.
async fn stock(pki: &Pki, shop: &mut Shop, services: u8, blocks: u8) {
    let settings = Settings::default();
    let own = pki
        .leaf(Profile::service(&proxy(1).service, &TrustDomain::default()))
        .await;
    shop.set(shop::certificate(&own));
    let roots = envoy::validation_context(&ValidationContext {
        name: osm_core::api::names::ROOT_CERTIFICATE_OUTBOUND.into(),
        roots: pki.roots().pem().clone(),
    });
    shop.set(Resource::new(ResourceType::Secret, roots.name.clone(), &roots));
    let mut chains = Vec::new();
    for (block, number) in (0..blocks).flat_map(|block| (0..services).map(move |number| (block, number))) {
        let service = ServiceKey::new("shop", format!("service-{block}-{number}"));
        let key = ClusterKey {
            service: service.clone(),
            target_port: TargetPort::Number(14001),
        };
        let upstream = UpstreamCluster {
            key: key.clone(),
            servers: vec![format!("{}.shop.cluster.local", service.name)],
        };
        let cluster = envoy::upstream_cluster(&upstream, &settings);
        let endpoint = |last| Endpoint {
            address: [10, block, number, last].into(),
            port: 14001,
        };
        let endpoints = envoy::endpoints(&ClusterEndpoints {
            key: key.clone(),
            endpoints: vec![endpoint(1), endpoint(2)],
        });
        let routes = format!("rds-outbound.{service}|80");
        let route = envoy::outbound_routes(&OutboundRoutes {
            name: routes.clone(),
            virtual_host: format!("outbound_virtual-host|{service}"),
            domains: vec![
                format!("{}.shop", service.name),
                format!("{}.shop.svc", service.name),
            ],
            clusters: vec![WeightedCluster {
                cluster: key.to_string(),
                weight: 100,
            }],
        });
        shop.set(Resource::new(
            ResourceType::Cluster,
            cluster.name.clone(),
            &cluster,
        ))
        .set(Resource::new(
            ResourceType::Endpoint,
            endpoints.cluster_name.clone(),
            &endpoints,
        ))
        .set(Resource::new(ResourceType::Route, route.name.clone(), &route));
        chains.push(OutboundChain {
            name: format!("outbound_{service}_80_http"),
            port: 80,
            addresses: vec![[10, 96, block, number].into()],
            protocol: Protocol::Http,
            forward: Forward::Routes(routes),
        });
    }
    shop.set(listener(chains, &settings));
    shop.publish();
}

/// The outbound listener on a free port of loopback.
fn listener(chains: Vec<OutboundChain>, settings: &Settings) -> Arc<Resource> {
    use osm_proto::envoy::config::core::v3::{address::Address, socket_address::PortSpecifier};
    let outbound = OutboundListener {
        chains,
        passthrough: false,
        ipv6: false,
    };
    let mut listener = envoy::outbound_listener(&outbound, settings);
    if let Some(Address::SocketAddress(socket)) = listener
        .address
        .as_mut()
        .and_then(|address| address.address.as_mut())
    {
        socket.address = "127.0.0.1".into();
        socket.port_specifier = Some(PortSpecifier::PortValue(0));
    }
    Resource::new(ResourceType::Listener, listener.name.clone(), &listener)
}

/// Kilobytes of a process: resident in all, and of these anonymous.
fn memory(process: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (field("VmRSS:"), field("RssAnon:"))
}

/// The numbers are in docs/sidecar-relay.md.
#[tokio::test(flavor = "multi_thread")]
async fn memory_grows_with_the_configuration_and_no_more() {
    for (services, blocks) in [(10, 1), (100, 1), (250, 4)] {
        let pki = Pki::new();
        let mut shop = Shop::new(&[proxy(1)]);
        stock(&pki, &mut shop, services, blocks).await;
        let server = Server::start(&pki, &shop.mesh).await;
        let mut pod = Pod::started(&pki, server.address).await;
        pod.ready().await;
        pod.kept().await;
        let count = u64::from(services) * u64::from(blocks);
        assert_eq!(pod.metric("kept_resources").await, 3 * count + 3);
        let live = memory(pod.relay.as_ref().unwrap().id());
        let volume = size(&pod.path("volume").join("kept"));
        server.stop().await;
        pod.kill();
        pod.start_relay();
        pod.start_envoy();
        pod.ready().await;
        let standing_by = memory(pod.relay.as_ref().unwrap().id());
        println!(
            "{count} services: {} kB of configuration; the relay passing it: {} kB resident, {} kB of them its own; \
             serving it: {} kB, {} kB",
            volume / 1024,
            live.0,
            live.1,
            standing_by.0,
            standing_by.1,
        );
        let bound = 8_192 + 16 * count;
        assert!(
            live.1 < bound && standing_by.1 < bound,
            "{live:?}, {standing_by:?}"
        );
    }
}
