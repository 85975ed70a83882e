//! From what a proxy must do ([`crate::ir`]) to the Envoy resources that make it do so.
//!
//! Owns every choice that is Envoy's and not the mesh's: names of filters, timeouts, retries, ejection, path
//! normalisation. Must not decide policy: each function turns one IR value into one resource. Invariants: equal input
//! has equal output, lists keep the IR's order, and no field is used that the newest Envoy calls deprecated.

mod access_log;
pub mod bootstrap;
mod cluster;
mod endpoint;
mod external_authorization;
mod http;
pub mod json;
mod listener;
mod matcher;
mod parts;
mod rbac;
mod retry;
mod route;
mod secret;
mod subject;
mod tcp;
mod tls;
mod tracing;

pub use cluster::{
    external_authorization_cluster, local_cluster, metrics_cluster, passthrough_cluster, tracing_cluster,
    upstream_cluster,
};
pub use endpoint::endpoints;
pub use listener::{inbound_listener, outbound_listener, prometheus_listener};
pub use route::{inbound_routes, outbound_routes};
pub use secret::{service_certificate, validation_context};
