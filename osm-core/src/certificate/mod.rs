//! Certificates of the mesh as data: who gets which, how long they live, when they are renewed, whom they prove.
//!
//! Owns the contents of every certificate the mesh issues ([`Profile`]), the reading of certificates that come from
//! outside ([`Certificate`], [`Root`], [`TrustBundle`]), the arithmetic of lifetimes ([`Validity`]) and the reading
//! of a proxy's identity from its certificate ([`proxy_of`]), and the rules by which roots are rotated ([`rotation`]). Signing and key generation are in `osm-runtime`.
//!
//! Invariant: nothing here reads a clock, and no input, however hostile, makes it panic.

mod bundle;
mod lifetime;
mod parse;
mod peer;
mod profile;
mod root;
pub mod rotation;
#[cfg(test)]
mod tests;

pub use bundle::TrustBundle;
pub use lifetime::{
    BACKDATE, BOOTSTRAP_LIFETIME, DEFAULT_SERVICE_LIFETIME, MIN_LIFETIME, ROOT_LIFETIME, SERVER_LIFETIME,
    Validity, service_lifetime,
};
pub use parse::{Certificate, ParseError, chain_from_pem};
pub use peer::{PeerError, proxy_of};
pub use profile::{Profile, Usage};
pub use root::{KeyForm, Root, RootError, key_form};
