//! A local Kubernetes made of real programs, the images that run on it, and what is tested on it.
//!
//! [`cluster`] makes, checks and removes the cluster; [`image`] builds container images without Docker. Both are
//! plain blocking code: they start programs and wait for them. [`ground`] gets both ready for the [`demo`] and the
//! end-to-end tests of [`suite`] and the fault drills of [`drill`], which look at the mesh through the [`harness`];
//! [`report`] is what the program `osm-demo` prints for them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkout;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod drill;
pub mod ground;
pub mod harness;
pub mod image;
pub mod progress;
pub mod report;
pub mod suite;
