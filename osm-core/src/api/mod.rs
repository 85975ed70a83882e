//! What users write and what the mesh writes for them: custom resources, labels, annotations, ports and names.
//!
//! Owns the contract with users of the original (its reference is `reference/osm-behaviour.md`, Appendix D). Nothing
//! here decides anything. Invariant: what is spelled here is what stands in the cluster, byte for byte.

pub mod access;
pub mod annotations;
pub mod duration;
pub mod labels;
pub mod mesh_config;
pub mod mesh_root_certificate;
pub mod names;
pub mod ports;
pub mod specs;
pub mod split;

pub use access::TrafficTarget;
pub use mesh_config::MeshConfig;
pub use mesh_root_certificate::MeshRootCertificate;
pub use specs::{HTTPRouteGroup, TCPRoute};
pub use split::TrafficSplit;
