//! The set of roots that is trusted: one in the steady state, two while a root is being rotated.
//!
//! Invariant: ordered and free of duplicates, so that every replica that trusts the same roots writes the same bytes
//! (law 3).

use std::sync::Arc;

use jiff::Timestamp;

use super::{Root, RootError, chain_from_pem};

/// Trusted roots; the default trusts nobody. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Arc<[Root]>,
    pem: Arc<str>,
}

impl Default for TrustBundle {
    fn default() -> Self {
        Self::new(std::iter::empty())
    }
}

impl TrustBundle {
    /// The union of `roots`, in whatever order and however often each is given.
    pub fn new(roots: impl IntoIterator<Item = Root>) -> Self {
        let mut roots: Vec<Root> = roots.into_iter().collect();
        roots.sort();
        roots.dedup();
        let pem: String = roots.iter().map(Root::pem).collect();
        Self {
            roots: roots.into(),
            pem: pem.into(),
        }
    }

    /// A bundle from PEM text.
    ///
    /// # Errors
    /// [`RootError`] when any block of it is not a CA certificate.
    pub fn from_pem(text: &str) -> Result<Self, RootError> {
        let roots = chain_from_pem(text)?
            .iter()
            .map(|der| Root::from_der(der))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(roots))
    }

    /// This bundle and `other`, both trusted.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.roots.iter().chain(other.roots.iter()).cloned())
    }

    /// The roots, ordered.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// All of them as PEM text: what Envoy, webhooks' CA bundles and peers get.
    pub fn pem(&self) -> &Arc<str> {
        &self.pem
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Checks that at least one root is valid at `now`.
    ///
    /// # Errors
    /// Why the last of them is not; [`super::ParseError::Empty`] when there is none.
    pub fn check_validity(&self, now: Timestamp) -> Result<(), RootError> {
        let mut verdict = Err(RootError::Parse(super::ParseError::Empty));
        for root in self.roots.iter() {
            verdict = root.check_validity(now);
            if verdict.is_ok() {
                break;
            }
        }
        verdict
    }
}
