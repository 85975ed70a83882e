//! The relay beside a sidecar: what it keeps of a passing stream, and what it says when no controller answers.
//!
//! Owns the rules of `osm-sidecar relay`: which resources are the last good configuration ([`Live`]), how they are
//! written down ([`Store`]), and how a proxy that starts is served from them ([`Standby`]). Must not read or write
//! files or sockets, nor know the time: it says which bytes to append and where to read.
//!
//! ```text
//! Envoy <-> relay <-> controller     every message passes as it is; Live notes what the proxy accepts -> Store
//! Envoy <-> relay                    no controller answers: Standby answers from the Store
//! ```
//!
//! Invariants: what the proxy has rejected is never kept; the store is offered only once it was complete; what the
//! proxy reports to have is left alone, nothing is ever taken from it here; all that is kept is bounded by [`Limits`],
//! and a configuration that does not fit is not kept at all, because half of one is worse than none.

mod journal;
mod live;
mod standby;
mod store;
mod wire;

#[cfg(test)]
mod tests;

pub use live::{Heard, Live};
pub use standby::{Answer, Standby};
pub use store::{Change, Compaction, Limits, Place, Store, TooMuch};

use crate::resource::Version;

/// What a reported version is replaced with when the store lacks it, so that the controller sends it again. No version
/// of ours is spelled like it.
const LOST: &str = "lost";

/// A version's text, whoever made it, in 16 bytes.
fn tag(version: &str) -> Version {
    Version::of(version.as_bytes())
}
