//! The controller: wiring between Kubernetes, the engine and the proxies.
//!
//! Owns the edges that only the controller has: [`ads`] (the discovery service), [`mesh`] (watches feeding the engine on
//! a thread of its own, and what it published), [`certificates`] (of the identities that are connected), [`validator`]
//! (the admission webhook), [`report`] (events), [`connections`] (how proxies stand, for operators), [`uninjected`] (pods
//! that lack a sidecar), [`pages`] (debug), [`preset`] (the default MeshConfig).
//! Decides nothing about the mesh: that is `osm-core`.
//!
//! Invariant: nothing here waits for another component of the mesh, and everything that serves goes on serving what it
//! last knew when Kubernetes is away.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod ads;
pub mod args;
pub mod certificates;
pub mod connections;
pub mod mesh;
pub mod pages;
pub mod preset;
pub mod report;
pub mod root_object;
pub mod run;
pub mod uninjected;
pub mod usage;
pub mod validator;
