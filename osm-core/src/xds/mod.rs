//! Streams: what one connected proxy is sent, and when, as state machines without input or output.
//!
//! Owns the rules of the xDS protocol, incremental ([`DeltaStream`]) and state-of-the-world ([`StateStream`]). A stream
//! is fed the proxy's requests and the newest [`Snapshot`](crate::resource::Snapshot), and says which responses go out.
//! It must not wait, know the time, or copy configuration: it remembers the snapshot the proxy is believed to have
//! (shared with all other streams) and a few exceptions.
//!
//! ```text
//! request -> delta | state -> Subscription (what it wants), Ledger (what it has), one of each a kind
//! snapshot -> session: compares, in the order CDS, EDS, LDS, RDS, SDS; removals last  -> Response
//! ```
//!
//! Invariants: a proxy is served from its own view only; at most one response of a kind is unanswered, and what
//! changes meanwhile is compared when the answer comes, so that intermediate states are skipped; what the proxy has is
//! not sent again unless the protocol demands it; what it rejected is not offered again until it changes; nothing a
//! proxy sends can panic, and what a stream remembers is bounded by [`Limits`].

mod base;
mod delta;
mod ledger;
mod request;
mod response;
mod session;
mod state;
mod subscription;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

pub use delta::DeltaStream;
pub use request::{DeltaRequest, HeldVersion};
pub use response::{Pieces, RESPONSE_BYTES, Response};
pub use session::KindStatus;
pub use state::StateStream;

use crate::resource::{ResourceType, Version};

/// What a proxy may make a stream remember. Beyond it the stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Names one kind's subscription may hold, and entries one request may list.
    pub names: usize,
    /// Bytes of one name.
    pub name_bytes: usize,
}

impl Default for Limits {
    /// 100,000 names of 1,024 bytes: far above what a mesh of the stated scale needs.
    fn default() -> Self {
        Self {
            names: 100_000,
            name_bytes: 1_024,
        }
    }
}

/// Why a stream must end. The stream's state is unspecified afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A request without a type URL. Maps to `INVALID_ARGUMENT`.
    #[error("the request has no type_url: an aggregated stream needs one in every request")]
    NoType,
    /// A name or version that is not UTF-8. Maps to `INVALID_ARGUMENT`.
    #[error("a resource name or version that is not UTF-8")]
    NotText,
    /// A resource name longer than [`Limits::name_bytes`]. Maps to `INVALID_ARGUMENT`.
    #[error("a resource name of {length} bytes: at most {limit} are allowed")]
    NameTooLong {
        /// Bytes of the name.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More names than [`Limits::names`]. Maps to `RESOURCE_EXHAUSTED`.
    #[error("{count} {kind:?} resource names: at most {limit} are allowed on one stream")]
    TooManyNames {
        /// The kind they are of.
        kind: ResourceType,
        /// How many there are.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
}

/// What a proxy is to be sent.
#[derive(Debug, Default)]
pub struct Due {
    /// In this order.
    pub responses: Vec<Response>,
    /// Whether there is more that was held back for being large.
    pub withheld: bool,
}

/// What a request meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A change of subscription, the first request of a kind, or nothing at all.
    Subscribed(ResourceType),
    /// The response in flight was accepted.
    Accepted(ResourceType),
    /// The response in flight was rejected. It will not be offered again until it changes.
    Rejected(Rejection),
    /// It answered a response that is not in flight: an old one, or none of this stream. Its answer was ignored; in an
    /// incremental stream its subscriptions count all the same.
    Stale(ResourceType),
    /// Its type is none this server speaks. Ignored.
    UnknownType,
}

/// A response that the proxy rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The kind of its resources.
    pub kind: ResourceType,
    /// The resources that are parked: not offered again at this version. Empty while it is being found out which of
    /// several is to blame.
    pub resources: Vec<(Arc<str>, Version)>,
    /// What the proxy said: printable, cut to [`MESSAGE_BYTES`].
    pub message: String,
}

/// The longest rejection message that is kept, in bytes.
pub const MESSAGE_BYTES: usize = 2_048;

/// Makes a message of a peer fit for a log: control characters are replaced, what is too long is cut.
fn printable(message: &str) -> String {
    let mut text = String::new();
    for character in message.chars() {
        if text.len() + character.len_utf8() > MESSAGE_BYTES {
            text.push('…');
            break;
        }
        text.push(if character.is_control() { ' ' } else { character });
    }
    text
}
