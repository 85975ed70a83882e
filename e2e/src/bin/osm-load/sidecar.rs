//! A fake Envoy's side of a discovery stream, without input or output.
//!
//! Owns what it subscribes to and when, as Envoy does: all clusters; then the endpoints and secrets these name; when it
//! has those, all listeners; then the routes and secrets these name. Every response is answered. After a reconnect it
//! opens the same kinds at once and says what it has. Traffic, warming and time are not its business.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use osm_core::{
    resource::ResourceType::{self, Cluster, Endpoint, Listener, Route, Secret},
    xds::{DeltaRequest, HeldVersion},
};
use osm_proto::{
    envoy::config::core::v3::Node,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};
use prost::Message;

use crate::{
    library::{Id, Library, Links},
    wire,
};

/// Which variant of the protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Variant {
    /// Incremental.
    Delta,
    /// State of the world.
    State,
}

/// What a response brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its kind, by position in [`ResourceType::ALL`].
    pub(crate) kind: usize,
    /// How many resources were in it.
    pub(crate) resources: usize,
    /// How many of these were held in this very version already.
    pub(crate) repeated: usize,
    /// How many were removed.
    pub(crate) removed: usize,
    /// The requests to send now, encoded, the answer first.
    pub(crate) requests: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Held {
    version: u64,
    links: Option<Rc<Links>>,
}

#[derive(Debug, Default)]
struct Kind {
    /// Whether it was subscribed to on this or an earlier stream.
    open: bool,
    /// Whether this kind was received whole, for those that are not named.
    received: bool,
    held: BTreeMap<Id, Held>,
    wanted: BTreeSet<Id>,
    /// What is wanted and was never answered.
    awaited: BTreeSet<Id>,
    nonce: String,
    version: String,
}

/// One fake Envoy's configuration.
#[derive(Debug)]
pub(crate) struct Sidecar {
    variant: Variant,
    /// What the first request of a stream begins with: the node, encoded, if the server wants to know it.
    greeting: Vec<u8>,
    kinds: [Kind; ResourceType::ALL.len()],
}

impl Sidecar {
    /// One that has nothing yet.
    pub(crate) fn new(variant: Variant, node: Option<Node>) -> Self {
        // Of an encoded message, fields may come in any order and from any number of parts.
        let greeting = match variant {
            _ if node.is_none() => Vec::new(),
            Variant::Delta => DeltaDiscoveryRequest {
                node,
                ..Default::default()
            }
            .encode_to_vec(),
            Variant::State => DiscoveryRequest {
                node,
                ..Default::default()
            }
            .encode_to_vec(),
        };
        Self {
            variant,
            greeting,
            kinds: Default::default(),
        }
    }

    /// Whether it has everything it asked for.
    pub(crate) fn is_synced(&self) -> bool {
        [Cluster, Listener]
            .iter()
            .all(|kind| self.kinds[*kind as usize].received)
            && self.kinds.iter().all(|kind| kind.awaited.is_empty())
    }

    /// The first requests of a new stream, encoded.
    pub(crate) fn start(&mut self, library: &Library) -> Vec<Vec<u8>> {
        for kind in &mut self.kinds {
            kind.nonce.clear();
            if self.variant == Variant::State {
                // Every first request of this variant is answered.
                kind.received = false;
                kind.awaited.clone_from(&kind.wanted);
            }
        }
        self.kinds[Cluster as usize].open = true;
        let open = ResourceType::ALL
            .into_iter()
            .filter(|kind| self.kinds[*kind as usize].open);
        let mut requests: Vec<_> = open.map(|kind| self.first(kind, library)).collect();
        if let Some(first) = requests.first_mut() {
            first.extend_from_slice(&self.greeting);
        }
        requests
    }

    /// The first request of a kind on a stream.
    fn first(&self, kind: ResourceType, library: &Library) -> Vec<u8> {
        let of = &self.kinds[kind as usize];
        match self.variant {
            Variant::Delta => DeltaRequest {
                type_url: kind.type_url().into(),
                resource_names_subscribe: texts(&of.wanted, library).collect(),
                // In no order that the server knows, as Envoy's.
                initial_resource_versions: of
                    .held
                    .iter()
                    .filter_map(|(name, held)| {
                        let version = Id::try_from(held.version).ok()?;
                        Some(HeldVersion {
                            name: library.text(*name),
                            version: library.text(version),
                        })
                    })
                    .collect(),
                ..Default::default()
            }
            .encode_to_vec(),
            Variant::State => self.whole(kind, None, library),
        }
    }

    /// A state-of-the-world request: all names, the newest nonce.
    fn whole(&self, kind: ResourceType, error: Option<Status>, library: &Library) -> Vec<u8> {
        let of = &self.kinds[kind as usize];
        DiscoveryRequest {
            version_info: of.version.clone(),
            resource_names: texts(&of.wanted, library)
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .collect(),
            type_url: kind.type_url().into(),
            response_nonce: of.nonce.clone(),
            error_detail: error,
            ..Default::default()
        }
        .encode_to_vec()
    }

    /// Takes a response in and accepts it, or rejects it.
    ///
    /// # Errors
    /// When it cannot be read, or is of no kind that was asked for.
    pub(crate) fn take(&mut self, message: &[u8], accept: bool, library: &mut Library) -> Result<Taken> {
        let response = match self.variant {
            Variant::Delta => wire::delta(message)?,
            Variant::State => wire::state(message)?,
        };
        let kind = ResourceType::from_type_url(response.type_url)
            .with_context(|| format!("a response of type {:?}", response.type_url))?;
        let mut taken = Taken {
            kind: kind as usize,
            resources: response.resources.len(),
            removed: response.removed.len(),
            ..Taken::default()
        };
        let of = &mut self.kinds[kind as usize];
        of.nonce.clear();
        of.nonce.push_str(response.nonce);
        if !accept {
            taken.requests.push(self.answer(kind, false, library));
            return Ok(taken);
        }
        of.version.clear();
        of.version.push_str(response.version);
        of.received = true;
        let whole = self.variant == Variant::State && kind.allows_wildcard();
        let mut named = BTreeSet::new();
        for resource in &response.resources {
            let name = library.id(resource.name);
            let version = library.version(resource.version, resource.body);
            of.awaited.remove(&name);
            if whole {
                named.insert(name);
            }
            if of.held.get(&name).is_some_and(|held| held.version == version) {
                taken.repeated += 1;
                continue;
            }
            let links = match kind {
                Cluster | Listener => Some(library.links(kind, name, version, resource.body)?),
                _ => None,
            };
            of.held.insert(name, Held { version, links });
        }
        for name in &response.removed {
            let name = library.id(name);
            of.awaited.remove(&name);
            of.held.remove(&name);
        }
        if whole {
            let before = of.held.len();
            of.held.retain(|name, _| named.contains(name));
            taken.removed = before - of.held.len();
        }
        taken.requests.push(self.answer(kind, true, library));
        match kind {
            Cluster => {
                self.follow(Endpoint, library, &mut taken.requests);
                self.follow(Secret, library, &mut taken.requests);
            }
            Listener => {
                self.follow(Route, library, &mut taken.requests);
                self.follow(Secret, library, &mut taken.requests);
            }
            _ => {}
        }
        let clusters_are_ready = [Endpoint, Secret]
            .iter()
            .all(|kind| self.kinds[*kind as usize].awaited.is_empty());
        if self.kinds[Cluster as usize].received && clusters_are_ready && !self.kinds[Listener as usize].open
        {
            self.kinds[Listener as usize].open = true;
            taken.requests.push(self.first(Listener, library));
        }
        Ok(taken)
    }

    fn answer(&self, kind: ResourceType, accept: bool, library: &Library) -> Vec<u8> {
        let error = (!accept).then(|| Status {
            code: 13,
            message: "refused for the sake of a measurement".into(),
            ..Default::default()
        });
        match self.variant {
            Variant::Delta => DeltaRequest {
                type_url: kind.type_url().into(),
                response_nonce: self.kinds[kind as usize].nonce.clone(),
                error_detail: error,
                ..Default::default()
            }
            .encode_to_vec(),
            Variant::State => self.whole(kind, error, library),
        }
    }

    /// Subscribes to what clusters and listeners refer to now, and to nothing else.
    fn follow(&mut self, kind: ResourceType, library: &Library, requests: &mut Vec<Vec<u8>>) {
        let referrers: &[ResourceType] = match kind {
            Endpoint => &[Cluster],
            Route => &[Listener],
            _ => &[Cluster, Listener],
        };
        let mut wanted = BTreeSet::new();
        for referrer in referrers {
            let links = self.kinds[*referrer as usize].held.values();
            for links in links.filter_map(|held| held.links.as_deref()) {
                wanted.extend(match kind {
                    Endpoint => &links.endpoints,
                    Route => &links.routes,
                    _ => &links.secrets,
                });
            }
        }
        let of = &mut self.kinds[kind as usize];
        if wanted == of.wanted {
            return;
        }
        let new: BTreeSet<Id> = wanted.difference(&of.wanted).copied().collect();
        let gone: BTreeSet<Id> = of.wanted.difference(&wanted).copied().collect();
        of.wanted = wanted;
        of.awaited.extend(&new);
        for name in &gone {
            of.awaited.remove(name);
            of.held.remove(name);
        }
        let was_open = std::mem::replace(&mut of.open, true);
        requests.push(match self.variant {
            Variant::Delta if was_open => DeltaRequest {
                type_url: kind.type_url().into(),
                resource_names_subscribe: texts(&new, library).collect(),
                resource_names_unsubscribe: texts(&gone, library).collect(),
                ..Default::default()
            }
            .encode_to_vec(),
            Variant::Delta => self.first(kind, library),
            Variant::State => self.whole(kind, None, library),
        });
    }
}

fn texts(names: &BTreeSet<Id>, library: &Library) -> impl Iterator<Item = Bytes> {
    names.iter().map(|name| library.text(*name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use osm_core::{
        api::names,
        envoy,
        identity::{ProxyIdentity, ServiceIdentity},
        ir::{
            ClusterEndpoints, ClusterKey, ServiceCertificate, ServiceKey, Settings, TargetPort,
            UpstreamCluster, ValidationContext,
        },
        resource::{ClassId, ProxyEntry, Resource, Slot, Snapshot, TypeSet, View},
        xds::{DeltaStream, Limits, StateStream},
    };

    use super::*;

    /// A mesh of one proxy that calls one service.
    struct World {
        proxy: ProxyIdentity,
        snapshot: Arc<Snapshot>,
    }

    impl World {
        fn new(endpoints: usize) -> Self {
            let proxy = ProxyIdentity {
                uuid: uuid::Uuid::from_u128(1),
                service: ServiceIdentity::new("shop", "buyer"),
            };
            let key = ClusterKey {
                service: ServiceKey::new("shop", "web"),
                target_port: TargetPort::Number(80),
            };
            let upstream = UpstreamCluster {
                key: key.clone(),
                servers: vec!["web.shop.cluster.local".into()],
            };
            let cluster = envoy::upstream_cluster(&upstream, &Settings::default());
            let endpoint = |last: usize| osm_core::ir::Endpoint {
                address: std::net::Ipv4Addr::new(10, 0, 0, u8::try_from(last).unwrap()).into(),
                port: 80,
            };
            let assignment = envoy::endpoints(&ClusterEndpoints {
                key,
                endpoints: (1..=endpoints).map(endpoint).collect(),
            });
            let validation = envoy::validation_context(&ValidationContext {
                name: names::ROOT_CERTIFICATE_OUTBOUND.into(),
                roots: "roots".into(),
            });
            let own = envoy::service_certificate(&ServiceCertificate {
                chain: "chain".into(),
                key: "key".into(),
            });
            let listener = envoy::outbound_listener(
                &osm_core::ir::OutboundListener {
                    chains: Vec::new(),
                    passthrough: false,
                    ipv6: false,
                },
                &Settings::default(),
            );
            let resources = [
                Resource::new(Cluster, cluster.name.clone(), &cluster),
                Resource::new(Endpoint, assignment.cluster_name.clone(), &assignment),
                Resource::new(Listener, listener.name.clone(), &listener),
                Resource::new(Secret, validation.name.clone(), &validation),
                Resource::new(Secret, own.name.clone(), &own),
            ];
            let mut snapshot = Snapshot::default();
            let entry = ProxyEntry {
                identity: proxy.service.clone(),
                class: ClassId(1),
            };
            snapshot.set_proxy(proxy.uuid, Some(entry));
            let mut view = View::default();
            for kind in ResourceType::ALL {
                let members = resources
                    .iter()
                    .enumerate()
                    .filter(|(_, resource)| resource.kind() == kind);
                let members = members.map(|(slot, resource)| (resource.name().clone(), Slot(slot as u32)));
                view = view.with(kind, Arc::new(TypeSet::new(members.collect())));
            }
            for (slot, resource) in resources.into_iter().enumerate() {
                snapshot.set_resource(Slot(slot as u32), Some(resource));
            }
            snapshot.set_view(ClassId(1), Some(Arc::new(view)));
            snapshot.revision = endpoints as u64;
            Self {
                proxy,
                snapshot: Arc::new(snapshot),
            }
        }
    }

    /// Carries messages between a fake Envoy and a real stream until both are quiet; what was sent, by kind.
    fn converse(
        sidecar: &mut Sidecar,
        library: &mut Library,
        mut requests: Vec<Vec<u8>>,
        mut serve: impl FnMut(Option<&[u8]>) -> Vec<osm_core::xds::Response>,
    ) -> [usize; 5] {
        let mut sent = [0; 5];
        let mut first = true;
        while first || !requests.is_empty() {
            let mut responses = if first { serve(None) } else { Vec::new() };
            first = false;
            for request in std::mem::take(&mut requests) {
                responses.extend(serve(Some(&request)));
            }
            for response in responses {
                let mut bytes = Vec::new();
                response.encode(&mut bytes);
                let taken = sidecar.take(&bytes, true, library).unwrap();
                sent[taken.kind] += taken.resources;
                requests.extend(taken.requests);
            }
        }
        sent
    }

    #[test]
    fn it_gets_everything_remembers_it_and_takes_changes() {
        let (before, after) = (World::new(1), World::new(2));
        let (mut library, mut sidecar) = (Library::default(), Sidecar::new(Variant::Delta, None));
        let mut stream = DeltaStream::new(before.proxy.clone(), Limits::default());
        let mut serve = |request: Option<&[u8]>| {
            if let Some(request) = request {
                let request = DeltaRequest::decode(request).unwrap();
                stream.on_request(&request, &before.snapshot).unwrap();
            }
            stream.next_responses(&before.snapshot)
        };
        let requests = sidecar.start(&library);
        assert!(!sidecar.is_synced());
        let sent = converse(&mut sidecar, &mut library, requests, &mut serve);
        assert_eq!(sent, [1, 1, 1, 0, 2]);
        assert!(sidecar.is_synced());

        // Another replica that has newer endpoints.
        let mut stream = DeltaStream::new(after.proxy.clone(), Limits::default());
        let serve = |request: Option<&[u8]>| {
            if let Some(request) = request {
                let request = DeltaRequest::decode(request).unwrap();
                stream.on_request(&request, &after.snapshot).unwrap();
            }
            stream.next_responses(&after.snapshot)
        };
        let requests = sidecar.start(&library);
        assert_eq!(requests.len(), 4, "no routes were ever asked for");
        let sent = converse(&mut sidecar, &mut library, requests, serve);
        assert_eq!(sent, [0, 1, 0, 0, 0]);
    }

    #[test]
    fn the_state_of_the_world_is_spoken_too() {
        let world = World::new(1);
        let (mut library, mut sidecar) = (Library::default(), Sidecar::new(Variant::State, None));
        let mut stream = StateStream::new(world.proxy.clone(), Limits::default());
        let serve = |request: Option<&[u8]>| {
            if let Some(request) = request {
                let request = DiscoveryRequest::decode(request).unwrap();
                stream.on_request(&request, &world.snapshot).unwrap();
            }
            stream.next_responses(&world.snapshot)
        };
        let requests = sidecar.start(&library);
        let sent = converse(&mut sidecar, &mut library, requests, serve);
        assert_eq!(sent, [1, 1, 1, 0, 2]);
        assert!(sidecar.is_synced());
    }
}
