//! The rules of the mesh, as pure functions.
//!
//! Owns what Kubernetes and SMI objects mean: which protocol a port speaks, which hosts a service answers to, where its
//! traffic goes, who may call it. Must not keep state; the engine decides when a rule is evaluated. Invariant: equal
//! arguments give equal results, in a fixed order.

pub mod access;
pub mod hosts;
pub mod inbound;
pub mod outbound;
pub mod protocol;
pub mod request;
pub mod split;

pub use access::Access;
pub use inbound::Inbound;
pub use outbound::{Door, Outbound};
