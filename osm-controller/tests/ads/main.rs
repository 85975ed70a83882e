//! The discovery service over real TLS: with a client made by hand (`refusals`, `streams`), and with the real Envoy
//! (`envoy`), which is the one of `$OSM_ENVOY` or of the cache of `make unit-test`.
#![allow(clippy::unwrap_used)]

mod client;
mod envoy;
mod refusals;
mod rotation;
mod server;
mod shop;
mod status;
mod streams;
