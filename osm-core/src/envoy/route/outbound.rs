//! Requests the pod's application sends to one service port.
//!
//! Every request to one of the service's hosts goes to its clusters: what may be sent is decided where it arrives.

use osm_proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
    route::Action, route_action::ClusterSpecifier, weighted_cluster::ClusterWeight,
};

use super::within_bounds;
use crate::{
    envoy::{matcher::any_request, parts::seconds, retry},
    ir::{self, OutboundRoutes},
};

/// The RDS resource of a service port. Two routes: one for the safe methods, which may be retried more freely, and
/// one for all requests; none (404) when no cluster has a share.
pub fn outbound_routes(routes: &OutboundRoutes) -> RouteConfiguration {
    let clusters = clusters(&routes.clusters);
    let safe = RouteMatch {
        headers: vec![retry::safe_methods()],
        ..any_request()
    };
    let route = |requests: RouteMatch, retries: Option<RetryPolicy>| {
        Some(Route {
            r#match: Some(requests),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(clusters.clone()?),
                // No limit: how long an answer may take is known to the application, not to the mesh.
                timeout: Some(seconds(0)),
                retry_policy: retries,
                ..Default::default()
            })),
            ..Default::default()
        })
    };
    let virtual_host = VirtualHost {
        name: routes.virtual_host.clone(),
        domains: routes.domains.clone(),
        routes: [route(safe, Some(retry::safe())), route(any_request(), None)]
            .into_iter()
            .flatten()
            .collect(),
        // What a route says of retries replaces this.
        retry_policy: Some(retry::unsent()),
        include_request_attempt_count: true,
        ..Default::default()
    };
    RouteConfiguration {
        virtual_hosts: vec![virtual_host],
        response_headers_to_remove: [retry::UNSENT_HEADER, retry::CUT_HEADER]
            .map(str::to_owned)
            .into(),
        ..super::configuration(&routes.name)
    }
}

/// Where requests go; `None` when the weights are all zero, which Envoy rejects.
fn clusters(clusters: &[ir::WeightedCluster]) -> Option<ClusterSpecifier> {
    if clusters.iter().all(|share| share.weight == 0) {
        return None;
    }
    if let [only] = clusters {
        return Some(ClusterSpecifier::Cluster(only.cluster.clone()));
    }
    let share = |share: ir::WeightedCluster| ClusterWeight {
        name: share.cluster,
        weight: Some(share.weight),
        ..Default::default()
    };
    Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: within_bounds(clusters).map(share).collect(),
        ..Default::default()
    }))
}
