//! The streams of `osm-core`, as what serves them needs them.
//!
//! Owns what the two variants of the protocol have in common, and what can be told from a request of either. Must not
//! decide anything: it forwards.

use std::sync::Arc;

use osm_core::{
    identity::ProxyIdentity,
    resource::Snapshot,
    xds::{self, DeltaRequest, DeltaStream, KindStatus, Outcome, StateStream, StreamError},
};
use osm_proto::envoy::service::discovery::v3::DiscoveryRequest;

/// What the two variants of the protocol have in common.
pub(super) trait Machine: Send + 'static {
    type Request: prost::Message + Default + Send + 'static;
    const NAME: &'static str;

    fn new(proxy: ProxyIdentity, limits: xds::Limits) -> Self;
    fn proxy(&self) -> &ProxyIdentity;
    fn on_request(
        &mut self,
        request: &Self::Request,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Outcome, StreamError>;
    fn weight(&self, snapshot: &Snapshot) -> usize;
    fn due(&mut self, snapshot: &Arc<Snapshot>, limit: usize) -> xds::Due;
    fn settle(&mut self);
    fn status(&self) -> Vec<KindStatus>;
    /// Whether the request says that the proxy has configuration from before.
    fn is_reconnect(request: &Self::Request) -> bool;
    /// How many names the request lists.
    fn names(request: &Self::Request) -> usize;
}

/// What both streams do themselves, under the same names.
macro_rules! forward {
    () => {
        fn new(proxy: ProxyIdentity, limits: xds::Limits) -> Self {
            Self::new(proxy, limits)
        }

        fn proxy(&self) -> &ProxyIdentity {
            self.proxy()
        }

        fn on_request(
            &mut self,
            request: &Self::Request,
            snapshot: &Arc<Snapshot>,
        ) -> Result<Outcome, StreamError> {
            self.on_request(request, snapshot)
        }

        fn weight(&self, snapshot: &Snapshot) -> usize {
            self.weight(snapshot)
        }

        fn due(&mut self, snapshot: &Arc<Snapshot>, limit: usize) -> xds::Due {
            self.due(snapshot, limit)
        }

        fn status(&self) -> Vec<KindStatus> {
            self.status()
        }
    };
}

impl Machine for DeltaStream {
    type Request = DeltaRequest;
    const NAME: &'static str = "delta";

    forward!();

    fn settle(&mut self) {
        self.settle();
    }

    fn is_reconnect(request: &Self::Request) -> bool {
        !request.initial_resource_versions.is_empty()
    }

    fn names(request: &Self::Request) -> usize {
        request
            .initial_resource_versions
            .len()
            .max(request.resource_names_subscribe.len())
    }
}

impl Machine for StateStream {
    type Request = DiscoveryRequest;
    const NAME: &'static str = "state";

    forward!();

    fn settle(&mut self) {}

    fn is_reconnect(request: &Self::Request) -> bool {
        request.response_nonce.is_empty() && !request.version_info.is_empty()
    }

    fn names(request: &Self::Request) -> usize {
        request.resource_names.len()
    }
}
