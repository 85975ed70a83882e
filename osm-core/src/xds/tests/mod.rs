//! A small world to test streams in: resources whose bodies are a number, one class, one proxy (and a stranger).

mod delta;
mod hostile;
mod model;
mod state;
mod wire;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use osm_proto::envoy::{
    config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    },
    extensions::transport_sockets::tls::v3::Secret,
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use prost::Message;
use uuid::Uuid;

use super::{DeltaRequest, Response};
use crate::{
    identity::{ProxyIdentity, ServiceIdentity},
    resource::{ClassId, ProxyEntry, Resource, ResourceType, Slot, Snapshot, TypeSet},
};

pub(crate) fn proxy() -> ProxyIdentity {
    ProxyIdentity {
        uuid: Uuid::from_u128(1),
        service: ServiceIdentity::new("shop", "buyer"),
    }
}

/// A resource whose content is `value`.
pub(crate) fn resource(kind: ResourceType, name: &str, value: u32) -> Arc<Resource> {
    let content = format!("{name}#{value}");
    match kind {
        ResourceType::Cluster => Resource::new(
            kind,
            name,
            &Cluster {
                name: content,
                ..Default::default()
            },
        ),
        ResourceType::Endpoint => Resource::new(
            kind,
            name,
            &ClusterLoadAssignment {
                cluster_name: content,
                ..Default::default()
            },
        ),
        ResourceType::Listener => Resource::new(
            kind,
            name,
            &Listener {
                name: content,
                ..Default::default()
            },
        ),
        ResourceType::Route => Resource::new(
            kind,
            name,
            &RouteConfiguration {
                name: content,
                ..Default::default()
            },
        ),
        ResourceType::Secret => Resource::new(
            kind,
            name,
            &Secret {
                name: content,
                ..Default::default()
            },
        ),
    }
}

/// The proxy's view and the snapshot, edited by a test.
pub(crate) struct World {
    snapshot: Snapshot,
    members: BTreeMap<ResourceType, BTreeMap<String, Slot>>,
    slots: u32,
    published: Arc<Snapshot>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            snapshot: Snapshot::default(),
            members: BTreeMap::new(),
            slots: 0,
            published: Arc::default(),
        };
        let entry = ProxyEntry {
            identity: proxy().service,
            class: ClassId(7),
        };
        world.snapshot.set_proxy(proxy().uuid, Some(entry));
        world.snapshot.set_view(ClassId(7), Some(Arc::default()));
        // A secret of somebody else: in the table, in no view of ours.
        let stranger = world.slot();
        world
            .snapshot
            .set_resource(stranger, Some(resource(ResourceType::Secret, "stranger", 0)));
        world
    }

    fn slot(&mut self) -> Slot {
        self.slots += 1;
        Slot(self.slots - 1)
    }

    fn member(&mut self, kind: ResourceType, name: &str) -> Slot {
        if let Some(slot) = self.members.get(&kind).and_then(|members| members.get(name)) {
            return *slot;
        }
        let slot = self.slot();
        self.members
            .entry(kind)
            .or_default()
            .insert(name.to_owned(), slot);
        self.rebuild(kind);
        slot
    }

    fn rebuild(&mut self, kind: ResourceType) {
        let members = self.members.entry(kind).or_default();
        let set = TypeSet::new(
            members
                .iter()
                .map(|(name, slot)| (name.as_str().into(), *slot))
                .collect(),
        );
        let view = self
            .snapshot
            .view(ClassId(7))
            .expect("the class has a view")
            .as_ref()
            .clone();
        self.snapshot
            .set_view(ClassId(7), Some(Arc::new(view.with(kind, Arc::new(set)))));
    }

    pub(crate) fn set(&mut self, kind: ResourceType, name: &str, value: u32) -> &mut Self {
        let slot = self.member(kind, name);
        self.snapshot
            .set_resource(slot, Some(resource(kind, name, value)));
        self
    }

    /// In the view, but not known yet.
    pub(crate) fn pend(&mut self, kind: ResourceType, name: &str) -> &mut Self {
        let slot = self.member(kind, name);
        self.snapshot.set_resource(slot, None);
        self
    }

    pub(crate) fn remove(&mut self, kind: ResourceType, name: &str) -> &mut Self {
        if let Some(slot) = self.members.entry(kind).or_default().remove(name) {
            self.snapshot.set_resource(slot, None);
            self.rebuild(kind);
        }
        self
    }

    /// The proxy is gone, or back under another identity.
    pub(crate) fn own(&mut self, identity: Option<ServiceIdentity>) -> &mut Self {
        let entry = identity.map(|identity| ProxyEntry {
            identity,
            class: ClassId(7),
        });
        self.snapshot.set_proxy(proxy().uuid, entry);
        self
    }

    pub(crate) fn publish(&mut self) -> Arc<Snapshot> {
        self.snapshot.revision += 1;
        self.published = Arc::new(self.snapshot.clone());
        self.published.clone()
    }

    pub(crate) fn published(&self) -> &Arc<Snapshot> {
        &self.published
    }

    /// The kind's resources of the published view.
    pub(crate) fn resources(&self, kind: ResourceType) -> BTreeMap<String, Option<Arc<Resource>>> {
        let view = self.published.view(ClassId(7)).expect("the class has a view");
        let entries = view.set(kind).iter();
        entries
            .map(|(name, slot)| (name.to_string(), self.published.resource(*slot).cloned()))
            .collect()
    }
}

/// What a response carries, in short: `CDS +a +b -c`.
pub(crate) fn short(response: &Response) -> String {
    let mut text = match response.kind {
        ResourceType::Cluster => "CDS",
        ResourceType::Endpoint => "EDS",
        ResourceType::Listener => "LDS",
        ResourceType::Route => "RDS",
        ResourceType::Secret => "SDS",
    }
    .to_owned();
    for resource in &response.resources {
        text.push_str(&format!(" +{}", resource.name()));
    }
    for name in &response.removed {
        text.push_str(&format!(" -{name}"));
    }
    text
}

pub(crate) fn shorts(responses: &[Response]) -> Vec<String> {
    responses.iter().map(short).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn delta_request(kind: ResourceType, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names(subscribe),
        ..Default::default()
    }
}

/// The request as it is received.
pub(crate) fn received(request: &DeltaDiscoveryRequest) -> DeltaRequest {
    DeltaRequest::decode(Bytes::from(request.encode_to_vec())).expect("a request")
}

pub(crate) fn state_request(kind: ResourceType, subscribe: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names: names(subscribe),
        ..Default::default()
    }
}

pub(crate) fn rejection() -> Option<osm_proto::google::rpc::Status> {
    Some(osm_proto::google::rpc::Status {
        code: 3,
        message: "no\ngood".to_owned(),
        details: Vec::new(),
    })
}
