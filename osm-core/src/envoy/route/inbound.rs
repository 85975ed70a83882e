//! Requests to the pod's application, and who may send them.

use std::collections::BTreeMap;

use osm_proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, VirtualHost, route::Action, route_action::ClusterSpecifier,
};

use crate::{
    envoy::{matcher, parts::seconds, rbac},
    ir::{InboundRoute, InboundRoutes, InboundVirtualHost},
};

/// The RDS resource of one of the pod's ports. A request that matches no route gets 404, one whose sender a route
/// does not name gets 403.
pub fn inbound_routes(routes: &InboundRoutes) -> RouteConfiguration {
    RouteConfiguration {
        virtual_hosts: routes.virtual_hosts.iter().map(virtual_host).collect(),
        ..super::configuration(&routes.name)
    }
}

fn virtual_host(host: &InboundVirtualHost) -> VirtualHost {
    VirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: host
            .routes
            .iter()
            .map(|rule| route(rule, &host.cluster))
            .collect(),
        ..Default::default()
    }
}

fn route(rule: &InboundRoute, cluster: &str) -> Route {
    let access = rule.principals.as_deref().map(rbac::route_override);
    Route {
        r#match: Some(matcher::request(&rule.request)),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            timeout: Some(seconds(0)),
            ..Default::default()
        })),
        typed_per_filter_config: access
            .map(|access| BTreeMap::from([(rbac::HTTP_FILTER.to_owned(), access)]))
            .unwrap_or_default(),
        ..Default::default()
    }
}
