//! The resources of a sidecar, by the builders under test.

use std::sync::Arc;

use osm_core::{
    envoy::{self, json::to_json},
    ir::{ServiceCertificate, ValidationContext},
};
use serde_json::Value;

use crate::cases::Sidecar;

/// PEM texts, real or not.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) roots: Arc<str>,
    pub(crate) certificate: ServiceCertificate,
}

/// A sidecar's resources as JSON, in the order a controller sends them.
#[derive(serde::Serialize)]
pub(crate) struct Resources {
    pub(crate) clusters: Vec<Value>,
    pub(crate) endpoints: Vec<Value>,
    pub(crate) listeners: Vec<Value>,
    pub(crate) routes: Vec<Value>,
    pub(crate) secrets: Vec<Value>,
}

impl Resources {
    pub(crate) fn of(sidecar: &Sidecar, credentials: &Credentials) -> Self {
        let settings = &sidecar.settings;
        let outbound = sidecar.outbound.as_ref();
        let mut clusters: Vec<_> = sidecar
            .upstreams
            .iter()
            .map(|it| to_json(&envoy::upstream_cluster(it, settings)))
            .collect();
        clusters.extend(sidecar.locals.iter().map(|it| to_json(&envoy::local_cluster(it))));
        if outbound.is_some_and(|listener| listener.passthrough) {
            clusters.push(to_json(&envoy::passthrough_cluster()));
        }
        if sidecar.scraped {
            clusters.push(to_json(&envoy::metrics_cluster()));
        }
        clusters.extend(
            settings
                .tracing
                .iter()
                .map(|it| to_json(&envoy::tracing_cluster(it))),
        );
        let authorization = settings.external_authorization.iter();
        clusters.extend(authorization.map(|it| to_json(&envoy::external_authorization_cluster(it))));

        let mut listeners: Vec<_> = outbound
            .iter()
            .map(|it| to_json(&envoy::outbound_listener(it, settings)))
            .collect();
        listeners.extend(
            sidecar
                .inbound
                .iter()
                .map(|it| to_json(&envoy::inbound_listener(it, settings))),
        );
        if sidecar.scraped {
            listeners.push(to_json(&envoy::prometheus_listener(sidecar.ipv6)));
        }

        let mut routes: Vec<_> = sidecar
            .outbound_routes
            .iter()
            .map(|it| to_json(&envoy::outbound_routes(it)))
            .collect();
        routes.extend(
            sidecar
                .inbound_routes
                .iter()
                .map(|it| to_json(&envoy::inbound_routes(it))),
        );

        let mut secrets: Vec<_> = sidecar
            .contexts
            .iter()
            .map(|name| ValidationContext {
                name: (*name).to_owned(),
                roots: credentials.roots.clone(),
            })
            .map(|context| to_json(&envoy::validation_context(&context)))
            .collect();
        if !sidecar.contexts.is_empty() {
            secrets.push(to_json(&envoy::service_certificate(&credentials.certificate)));
        }
        let endpoints = sidecar
            .endpoints
            .iter()
            .map(|it| to_json(&envoy::endpoints(it)))
            .collect();
        Self {
            clusters,
            endpoints,
            listeners,
            routes,
            secrets,
        }
    }
}
