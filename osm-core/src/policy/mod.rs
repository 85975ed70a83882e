//! The rules of the mesh, as pure functions.
//!
//! Owns what Kubernetes and SMI objects mean: which protocol a port speaks, which hosts a service answers to, who may
//! call it. Must not keep state; the engine decides when a rule is evaluated. Invariant: equal arguments, equal results.

pub mod protocol;
