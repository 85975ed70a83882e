//! The listener that Prometheus scrapes Envoy's statistics from.

use osm_proto::envoy::{
    config::{
        core::v3::TrafficDirection,
        listener::v3::{FilterChain, Listener},
        route::v3::{
            Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
            route_action::ClusterSpecifier, route_match::PathSpecifier,
        },
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    },
};

use super::listener;
use crate::{
    api::{
        names::{METRICS_CLUSTER, PROMETHEUS_LISTENER},
        ports::PROMETHEUS,
    },
    envoy::http,
};

/// The one page of Envoy's admin endpoint that is shown outside the pod.
const PAGE: &str = "/stats/prometheus";

/// The LDS resource. Plain HTTP, for exactly one path: the rest of the admin endpoint can stop the proxy and shows
/// its configuration. `ipv6` is whether the pod has an IPv6 address.
pub fn prometheus_listener(ipv6: bool) -> Listener {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Path(PAGE.to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(METRICS_CLUSTER.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    };
    let routes = RouteConfiguration {
        name: "prometheus".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "prometheus".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        // The listener may come before the cluster and must not be rejected for it.
        validate_clusters: Some(false),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..http::plain("prometheus-http-conn-manager".to_owned(), vec![http::router()])
    };
    Listener {
        filter_chains: vec![FilterChain {
            filters: vec![http::filter(&manager)],
            ..Default::default()
        }],
        ..listener(PROMETHEUS_LISTENER, PROMETHEUS, TrafficDirection::Inbound, ipv6)
    }
}
