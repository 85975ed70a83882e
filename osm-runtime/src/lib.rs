//! The shell that every binary of the control plane shares: the edges of the process, and nothing of the mesh's rules.
//!
//! Each module is one edge: [`client`] and [`watch`] towards Kubernetes, [`tls`] and [`serve`] towards peers,
//! [`admin`], [`health`], [`status`], [`metrics`] and [`log`] towards operators, [`issuer`], [`renewal`] and [`roots`] for
//! certificates,
//! [`webhook`] for admission, [`lease`] and [`event`] for what only one replica should write or say, [`shutdown`] for
//! leaving gently. [`component`] puts together what every component begins and ends with.
//!
//! Invariant: everything is bounded (queues, bodies, connections, names, waits), everything periodic is jittered, and
//! no secret reaches a log, an error or a `Debug` output.
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod backoff;
pub mod client;
pub mod component;
pub mod event;
pub mod health;
pub mod issuer;
pub mod lease;
pub mod log;
pub mod metrics;
pub mod renewal;
pub mod roots;
pub mod serve;
pub mod shutdown;
pub mod status;
pub mod tls;
pub mod watch;
pub mod webhook;

pub use tokio_util::{sync::CancellationToken, task::TaskTracker};
