//! The root of an outside provider, as the mesh first met it.
//!
//! A provider may name another root from one day to the next, and a replica that starts then has nothing of its own to
//! compare it with. So the first replica writes the root's certificate into the Secret that holds Tresor's, and all
//! read it. Invariant: a root is used only if it is the one that was read back; what is stored is never replaced.

use std::time::Duration;

use osm_core::certificate::{Root, TrustBundle};
use zeroize::Zeroizing;

use super::{
    IssueError, RootSecret, StoredRoot,
    tresor::{RootStore, SecretStore, StoreError, read},
};
use crate::backoff::Backoff;

impl RootSecret {
    /// Holds `roots` against the remembered one, or remembers it, as [`agree`] does.
    pub(super) async fn agree(
        &self,
        client: kube::Client,
        roots: &TrustBundle,
        mut waiting: impl FnMut(&str),
    ) -> Result<(), IssueError> {
        let store = SecretStore::certificate_only(client, &self.namespace, &self.name, self.labels.clone());
        for root in roots.roots() {
            agree(&store, root, |error: &StoreError| waiting(&error.to_string())).await?;
        }
        Ok(())
    }
}

/// Stores `root` unless one is stored already; returns when the stored one is the same. Asks again while the store does
/// not answer, for as long as it takes; `waiting` is told why it takes long.
///
/// # Errors
/// [`IssueError::Store`] when another root is stored, or something that is none.
pub(super) async fn agree(
    store: &impl RootStore,
    root: &Root,
    mut waiting: impl FnMut(&StoreError),
) -> Result<(), IssueError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    let own = StoredRoot {
        certificate: root.pem(),
        key: Zeroizing::default(),
    };
    loop {
        if let Some(stored) = read(store, &mut waiting).await? {
            return compare(&stored, root);
        }
        if let Err(error) = store.create(&own).await {
            // It may have been stored all the same; reading tells.
            waiting(&error);
        }
        if let Some(stored) = read(store, &mut waiting).await? {
            return compare(&stored, root);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

fn compare(stored: &StoredRoot, root: &Root) -> Result<(), IssueError> {
    #[cfg(feature = "sabotage")]
    if osm_core::sabotage::Fault::NoPin.is_on() {
        return Ok(());
    }
    if Root::from_pem(&stored.certificate)? == *root {
        return Ok(());
    }
    Err(IssueError::Store(
        "the provider's root is not the one this mesh began with, which its root Secret holds: give the provider its \
         old root back; or, to begin anew with this one, delete the Secret and restart the control plane and all \
         meshed pods"
            .into(),
    ))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::issuer::{Authority, KeyKind, tests::Unreliable};

    fn root() -> Root {
        let stored = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
        Root::from_pem(&stored.certificate).unwrap()
    }

    /// Replicas that start while the provider changes its root: however the store fails, only one root gets in.
    #[tokio::test]
    async fn the_first_root_stays() {
        for seed in 0..20 {
            let store = Unreliable::new(seed, 20);
            let (one, other) = (root(), root());
            let outcomes = futures::future::join_all(
                [&one, &other, &one, &other].map(|root| agree(&store, root, |_| {})),
            )
            .await;
            let stored = Root::from_pem(
                &read(&store, &mut |_: &StoreError| {})
                    .await
                    .unwrap()
                    .unwrap()
                    .certificate,
            )
            .unwrap();
            for (root, outcome) in [&one, &other, &one, &other].into_iter().zip(outcomes) {
                assert_eq!(outcome.is_ok(), *root == stored, "seed {seed}: {outcome:?}");
                if let Err(error) = outcome {
                    assert_eq!(error.reason(), "RootCertificateProblem");
                }
            }
            agree(&store, &stored, |_| {}).await.unwrap();
        }
    }
}
