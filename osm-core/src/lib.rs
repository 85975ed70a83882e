//! The mesh as plain functions and data.
//!
//! Data goes one way through the modules below, and each is a folder of the same name:
//!
//! ```text
//! Kubernetes object -> facts -> mesh (engine) -> policy -> ir -> envoy -> resource -> xds -> Envoy
//! ```
//!
//! Invariant: nothing here does input or output. There is no async runtime, no Kubernetes client, no socket and no
//! clock: time comes in as an argument. The controller, the injector, the CLI and the tests run the very same rules.
#![deny(missing_docs)]

pub mod api;
pub mod certificate;
pub mod envoy;
pub mod facts;
pub mod identity;
pub mod injection;
pub mod ir;
pub mod mesh;
pub mod policy;
pub mod relay;
pub mod resource;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod status;
pub mod xds;
