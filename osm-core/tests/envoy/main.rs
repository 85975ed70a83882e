//! The Envoy resources the mesh writes, three times over: read by people (`golden`), taken by the real Envoy
//! (`accepted`), and at work between two real Envoys (`traffic`).
//!
//! `accepted` and `traffic` run the Envoy of `$OSM_ENVOY`, or the one in the cache (see [`envoy::program`]), and fail
//! without it. `traffic` needs root: it makes network namespaces.
#![allow(clippy::unwrap_used)]

mod accepted;
mod cases;
mod envoy;
mod golden;
mod host;
mod pair;
mod resources;
mod settings;
mod traffic;
