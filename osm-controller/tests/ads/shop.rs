//! A small mesh, published by hand: one class, a client of one HTTP service.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use osm_controller::mesh::Mesh;
use osm_core::{
    api::names,
    envoy,
    identity::ProxyIdentity,
    ir::*,
    resource::{ClassId, ProxyEntry, Resource, ResourceType, Slot, Snapshot, TypeSet, View},
};
use osm_proto::envoy::config::core::v3::{address, socket_address};
use osm_runtime::issuer::Leaf;

const CLASS: ClassId = ClassId(1);

/// What is published, edited by a test.
pub(crate) struct Shop {
    pub(crate) mesh: Mesh,
    resources: BTreeMap<(ResourceType, String), Arc<Resource>>,
    slots: BTreeMap<(ResourceType, String), Slot>,
    snapshot: Snapshot,
}

impl Shop {
    /// A mesh with these proxies and nothing else.
    pub(crate) fn new(proxies: &[ProxyIdentity]) -> Self {
        let mut snapshot = Snapshot::default();
        for proxy in proxies {
            let entry = ProxyEntry {
                identity: proxy.service.clone(),
                class: CLASS,
            };
            snapshot.set_proxy(proxy.uuid, Some(entry));
        }
        Self {
            mesh: Mesh::new(),
            resources: BTreeMap::new(),
            slots: BTreeMap::new(),
            snapshot,
        }
    }

    /// The same mesh in another process: equal resources in other slots.
    pub(crate) fn copy(other: &Self) -> Self {
        let mut copy = Self {
            mesh: Mesh::new(),
            resources: other.resources.clone(),
            slots: BTreeMap::new(),
            snapshot: Snapshot::default(),
        };
        for (uuid, entry) in other.snapshot.proxies() {
            copy.snapshot.set_proxy(*uuid, Some(entry.clone()));
        }
        copy.publish();
        copy
    }

    pub(crate) fn set(&mut self, resource: Arc<Resource>) -> &mut Self {
        self.resources
            .insert((resource.kind(), resource.name().to_string()), resource);
        self
    }

    pub(crate) fn remove(&mut self, kind: ResourceType, name: &str) -> &mut Self {
        self.resources.remove(&(kind, name.to_owned()));
        self
    }

    pub(crate) fn remove_proxy(&mut self, proxy: &ProxyIdentity) -> &mut Self {
        self.snapshot.set_proxy(proxy.uuid, None);
        self
    }

    /// Publishes what was edited.
    pub(crate) fn publish(&mut self) {
        let next = self.slots.len() as u32;
        let new = self.resources.keys().filter(|key| !self.slots.contains_key(*key));
        let new: Vec<_> = new.cloned().zip((next..).map(Slot)).collect();
        self.slots.extend(new);
        for (key, slot) in &self.slots {
            self.snapshot
                .set_resource(*slot, self.resources.get(key).cloned());
        }
        let mut view = View::default();
        for kind in ResourceType::ALL {
            let members = self.resources.keys().filter(|key| key.0 == kind);
            let members = members.map(|key| (key.1.as_str().into(), self.slots[key]));
            view = view.with(kind, Arc::new(TypeSet::new(members.collect())));
        }
        self.snapshot.set_view(CLASS, Some(Arc::new(view)));
        self.snapshot.revision += 1;
        self.mesh.publish(Arc::new(self.snapshot.clone()), &[CLASS]);
    }

    /// Clusters of no consequence, for clients that do not look inside.
    pub(crate) fn clusters(&mut self, names: &[&str], content: &str) -> &mut Self {
        for name in names {
            let cluster = osm_proto::envoy::config::cluster::v3::Cluster {
                name: (*name).to_owned(),
                alt_stat_name: content.to_owned(),
                ..Default::default()
            };
            self.set(Resource::new(ResourceType::Cluster, *name, &cluster));
        }
        self
    }
}

/// The service that is called.
pub(crate) fn store() -> ServiceKey {
    ServiceKey::new("shop", "bookstore")
}

fn cluster_key() -> ClusterKey {
    ClusterKey {
        service: store(),
        target_port: TargetPort::Number(14001),
    }
}

pub(crate) fn cluster(settings: &Settings) -> Arc<Resource> {
    let upstream = UpstreamCluster {
        key: cluster_key(),
        servers: vec!["bookstore.shop.cluster.local".into()],
    };
    let cluster = envoy::upstream_cluster(&upstream, settings);
    Resource::new(ResourceType::Cluster, cluster.name.clone(), &cluster)
}

pub(crate) fn endpoints(last: &[u8]) -> Arc<Resource> {
    let address = |last: &u8| IpAddr::from(Ipv4Addr::new(127, 0, 0, *last));
    let endpoints = last
        .iter()
        .map(|last| Endpoint {
            address: address(last),
            port: 14001,
        })
        .collect();
    let message = envoy::endpoints(&ClusterEndpoints {
        key: cluster_key(),
        endpoints,
    });
    Resource::new(ResourceType::Endpoint, message.cluster_name.clone(), &message)
}

/// The outbound listener with one HTTP service, on a free port of loopback.
pub(crate) fn listener(settings: &Settings) -> Arc<Resource> {
    let chain = OutboundChain {
        name: "outbound_shop/bookstore_80_http".into(),
        port: 80,
        addresses: vec![Ipv4Addr::new(10, 96, 0, 1).into()],
        protocol: Protocol::Http,
        forward: Forward::Routes(route_name()),
    };
    let mut listener = envoy::outbound_listener(
        &OutboundListener {
            chains: vec![chain],
            ..OutboundListener::default()
        },
        settings,
    );
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

pub(crate) fn route_name() -> String {
    "rds-outbound.shop/bookstore|80".into()
}

/// The routes to the service under these host names.
pub(crate) fn routes(domains: &[&str]) -> Arc<Resource> {
    let routes = envoy::outbound_routes(&OutboundRoutes {
        name: route_name(),
        virtual_host: "outbound_virtual-host|bookstore.shop.svc.cluster.local".into(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        clusters: vec![WeightedCluster {
            cluster: cluster_key().to_string(),
            weight: 100,
        }],
    });
    Resource::new(ResourceType::Route, routes.name.clone(), &routes)
}

pub(crate) fn validation(roots: &str) -> Arc<Resource> {
    let context = ValidationContext {
        name: names::ROOT_CERTIFICATE_OUTBOUND.into(),
        roots: roots.into(),
    };
    let secret = envoy::validation_context(&context);
    Resource::new(ResourceType::Secret, secret.name.clone(), &secret)
}

pub(crate) fn certificate(leaf: &Leaf) -> Arc<Resource> {
    let secret = envoy::service_certificate(&leaf.to_service_certificate());
    Resource::new(ResourceType::Secret, secret.name.clone(), &secret)
}
