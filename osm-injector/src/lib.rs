//! The mesh's mutating webhook.
//!
//! [`webhook`] answers the API server: what is to be done is decided in `osm_core::injection`, here it is carried out
//! by writing the pod's bootstrap Secret ([`bootstrap`]). [`upkeep`] looks after the Secrets that exist. [`membership`]
//! and [`config`] are what is known of the cluster. All replicas are equal; only upkeep is done by one at a time.
//!
//! Invariants: a request delivered twice, or to two replicas at once, makes one Secret and one patch; a dry run writes
//! nothing; whatever fails, the pod is denied with a sentence that says what to do.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod args;
pub mod bootstrap;
pub mod config;
pub mod membership;
pub mod run;
pub mod upkeep;
pub mod webhook;
