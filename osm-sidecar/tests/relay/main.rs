//! `osm-sidecar relay` between the real Envoy and a real discovery service, with a backend that demands mutual TLS.
#![allow(clippy::unwrap_used)]

mod backend;
mod memory;
mod pod;
mod restart;
#[allow(
    dead_code,
    reason = "shared with the controller's tests, which use more of it"
)]
#[path = "../../../osm-controller/tests/ads/server.rs"]
mod server;
#[allow(
    dead_code,
    reason = "shared with the controller's tests, which use more of it"
)]
#[path = "../../../osm-controller/tests/ads/shop.rs"]
mod shop;
