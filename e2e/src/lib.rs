//! A local Kubernetes made of real programs, the images that run on it, and what is tested on it.
//!
//! [`cluster`] makes, checks and removes the cluster; [`image`] builds container images without Docker. Both are
//! plain blocking code: they start programs and wait for them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkout;
pub mod cluster;
pub mod command;
pub mod image;
pub mod progress;
