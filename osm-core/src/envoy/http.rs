//! The HTTP connection manager: what every HTTP filter chain of the mesh runs.

use osm_proto::envoy::{
    config::listener::v3::{Filter, filter},
    extensions::filters::{
        http::router::v3::Router,
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, Rds,
            http_connection_manager::{PathWithEscapedSlashesAction, RouteSpecifier, UpgradeConfig},
            http_filter::ConfigType,
        },
    },
};
use prost::{Message, Name};

use super::{
    access_log::access_log,
    external_authorization::external_authorization,
    parts::{ads, any, seconds},
    rbac, retry,
    tracing::tracing,
};
use crate::ir::Settings;

/// For requests the pod's application sends. Transparent: paths and headers pass as they are.
pub(super) fn outbound(stat_prefix: String, route_configuration: &str, settings: &Settings) -> Filter {
    filter(&common(
        stat_prefix,
        route_configuration,
        settings,
        vec![router()],
    ))
}

/// For requests to the pod's application. `judges_paths` is whether a rule looks at their paths.
///
/// Rules are written for the path the application sees, so where they look at it, it must mean one thing only: `..` is
/// resolved and slashes are merged before a route is chosen, and the application gets the result. An escaped slash or
/// backslash (`%2F`, `%5C`) means a slash to some applications and none to others: it stays, and the routes see to it
/// that only rules that speak of it match (`matcher`). Where no rule looks at paths, they pass as they are.
pub(super) fn inbound(
    stat_prefix: String,
    route_configuration: &str,
    judges_paths: bool,
    settings: &Settings,
) -> Filter {
    let mut filters = vec![http_filter(rbac::HTTP_FILTER, &rbac::http_filter())];
    if let Some(server) = &settings.external_authorization {
        filters.push(http_filter(
            "envoy.filters.http.ext_authz",
            &external_authorization(server),
        ));
    }
    filters.push(router());
    filter(&HttpConnectionManager {
        normalize_path: Some(judges_paths),
        merge_slashes: judges_paths,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::KeepUnchanged.into(),
        local_reply_config: Some(retry::marks()),
        ..common(stat_prefix, route_configuration, settings, filters)
    })
}

fn common(
    stat_prefix: String,
    route_configuration: &str,
    settings: &Settings,
    http_filters: Vec<HttpFilter>,
) -> HttpConnectionManager {
    let routes = Rds {
        config_source: Some(ads()),
        route_config_name: route_configuration.to_owned(),
    };
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(routes)),
        access_log: vec![access_log()],
        tracing: settings.tracing.as_ref().map(tracing),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        // A stream may be silent as long as its two ends like: Envoy's default of five minutes cuts off quiet
        // WebSockets and gRPC streams.
        stream_idle_timeout: Some(seconds(0)),
        ..plain(stat_prefix, http_filters)
    }
}

/// The least that works. What is left out, on purpose: the codec is told from the first bytes (`AUTO`), a client
/// certificate header sent by a client is removed (`SANITIZE`), and `x-forwarded-for` is passed on as received.
pub(super) fn plain(stat_prefix: String, http_filters: Vec<HttpFilter>) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix,
        http_filters,
        ..Default::default()
    }
}

/// The last HTTP filter.
pub(super) fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", &Router::default())
}

/// The network filter of a connection manager.
pub(super) fn filter(manager: &HttpConnectionManager) -> Filter {
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(manager))),
    }
}

fn http_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}
