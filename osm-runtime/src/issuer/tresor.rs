//! Tresor, the built-in CA: its root is in a Secret that all replicas share.
//!
//! Owns how that root comes to be. Invariant: what was read back from the store is what is used, whoever wrote it; a
//! stored root that is malformed, expired or not a CA is an error and is never replaced.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use zeroize::Zeroizing;

use super::{Authority, IssueError, KeyKind, StoredRoot};
use crate::{backoff::Backoff, client};

/// The Secret's key of the certificate.
pub const CERTIFICATE_KEY: &str = "ca.crt";
/// The Secret's key of the private key.
pub const PRIVATE_KEY_KEY: &str = "private.key";

/// Where the root is kept.
pub trait RootStore: Send + Sync {
    /// What is stored; `None` when nothing is. Must see every write that completed before the call.
    fn read(&self) -> impl Future<Output = Result<Option<StoredRoot>, StoreError>> + Send;

    /// Stores `root` unless something is stored already. Whether it was stored is found out by reading: an answer
    /// may be lost on its way back.
    fn create(&self, root: &StoredRoot) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Why the store did not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Asking again may help: a timeout, a conflict, an overloaded server.
    #[error("{0}")]
    Temporary(String),
    /// What is stored is incomplete. Never replaced.
    #[error("{0}")]
    Malformed(String),
}

/// Loads the root, making one if there is none. Safe to run in any number of processes at once: all of them end with
/// the same root. Asks again, with backoff and jitter, for as long as it takes: the caller sets the limit, by dropping
/// the future; `waiting` is told why it takes long.
///
/// # Errors
/// [`IssueError::Root`] and [`IssueError::Store`] when what is stored is not fit to be used: never replaced.
pub async fn load_or_create(
    store: &impl RootStore,
    kind: KeyKind,
    now: impl Fn() -> Timestamp,
    mut waiting: impl FnMut(&StoreError),
) -> Result<Authority, IssueError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        match read(store, &mut waiting).await? {
            Some(stored) => return Authority::load(&stored, now()),
            None => tracing::info!("there is no root certificate: making one"),
        }
        let candidate = Authority::generate(kind, now())?;
        if let Err(error) = store.create(&candidate).await {
            // It may have been stored all the same; reading tells.
            waiting(&error);
        }
        #[cfg(feature = "sabotage")]
        if osm_core::sabotage::Fault::NoReadBack.is_on() {
            return Authority::load(&candidate, now());
        }
        // Whatever `create` answered, what is stored now is what counts. Nothing: it is tried again, after a wait.
        if let Some(stored) = read(store, &mut waiting).await? {
            return Authority::load(&stored, now());
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// What is stored; asks again, with backoff and jitter, while the store does not answer.
pub(super) async fn read(
    store: &impl RootStore,
    waiting: &mut impl FnMut(&StoreError),
) -> Result<Option<StoredRoot>, IssueError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        match store.read().await {
            Ok(found) => return Ok(found),
            Err(StoreError::Malformed(message)) => return Err(IssueError::Store(message)),
            Err(error) => waiting(&error),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// The root in a Secret of the control plane's namespace.
#[derive(Clone)]
pub struct SecretStore {
    api: Api<Secret>,
    name: String,
    labels: BTreeMap<String, String>,
    /// Whether the private key is here: it is not when the CA is elsewhere.
    with_key: bool,
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretStore")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl SecretStore {
    /// The Secret `name` in `namespace`; `labels` are put on it when it is made.
    pub fn new(client: kube::Client, namespace: &str, name: &str, labels: BTreeMap<String, String>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            labels,
            with_key: true,
        }
    }

    /// The same without a private key: the certificate of a CA that is elsewhere.
    pub fn certificate_only(
        client: kube::Client,
        namespace: &str,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Self {
        Self {
            with_key: false,
            ..Self::new(client, namespace, name, labels)
        }
    }

    fn text(&self, data: &BTreeMap<String, ByteString>, key: &str) -> Result<String, StoreError> {
        let malformed = |problem: &str| {
            StoreError::Malformed(format!(
                "the Secret {} {problem} {key}; restore it from a backup",
                self.name
            ))
        };
        let bytes = data.get(key).ok_or_else(|| malformed("has no"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| malformed("holds no text in"))
    }
}

impl RootStore for SecretStore {
    async fn read(&self) -> Result<Option<StoredRoot>, StoreError> {
        let found = client::within(client::CALL, self.api.get_opt(&self.name)).await;
        let Some(secret) = found.map_err(|error| StoreError::Temporary(error.to_string()))? else {
            return Ok(None);
        };
        let data = secret.data.unwrap_or_default();
        Ok(Some(StoredRoot {
            certificate: self.text(&data, CERTIFICATE_KEY)?,
            key: if self.with_key {
                Zeroizing::new(self.text(&data, PRIVATE_KEY_KEY)?)
            } else {
                Zeroizing::default()
            },
        }))
    }

    async fn create(&self, root: &StoredRoot) -> Result<(), StoreError> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: &str| data.insert(key.to_owned(), ByteString(text.into()));
        put(CERTIFICATE_KEY, &root.certificate);
        if self.with_key {
            put(PRIVATE_KEY_KEY, &root.key);
        }
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(self.labels.clone()),
                ..ObjectMeta::default()
            },
            data: Some(data),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        match client::within(client::CALL, self.api.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(StoreError::Temporary(error.to_string())),
        }
    }
}
