//! What the demo and the tests do to a cluster, and how they look at it.
//!
//! Owns access to Kubernetes, to the mesh through its CLI, to sidecars through their admin endpoint, and to what the
//! program `osm-demo` prints. Must not judge: what an answer means is for the demo and the tests.
//! Invariant: everything made in a cluster is in a namespace that is removed again.

pub mod envoy;
pub mod failure;
pub mod kubernetes;
pub mod mesh;
pub mod peer;
pub mod policy;
pub mod runner;
pub mod wait;
pub mod workload;

pub use kubernetes::Kubernetes;
pub use mesh::Mesh;
pub use peer::Peer;
pub use runner::{Case, Test};
pub use wait::eventually;
pub use workload::Workload;
