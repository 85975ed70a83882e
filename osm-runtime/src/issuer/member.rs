//! One root with whoever signs for it.
//!
//! Owns a provider that was opened, and the count of the leaves it signed that are still in use. Invariant: a leaf is
//! handed out only after it was checked against this member's own roots.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use osm_core::certificate::{Root, TrustBundle};

use super::{
    Authority, IssueError, KeyKind, Leaf, LeafRequest, Provider, RootState,
    cert_manager::CertManager,
    tresor::{self, RootStore, SecretStore, StoreError},
    vault::{self, Vault},
    verify,
};

/// A root that certificates can be had from. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Member {
    inner: Arc<Inner>,
}

struct Inner {
    signer: Signer,
    roots: TrustBundle,
    fingerprint: Arc<str>,
    /// Every leaf in use holds a clone: counting them tells when nothing depends on this root any more.
    token: Arc<()>,
}

enum Signer {
    Local {
        authority: Arc<Authority>,
        store: Option<Box<SecretStore>>,
    },
    Vault(Arc<Vault>),
    CertManager(Box<CertManager>),
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.inner.signer {
            Signer::Local { .. } => "tresor",
            Signer::Vault(_) => "vault",
            Signer::CertManager(_) => "cert-manager",
        })
    }
}

impl Member {
    /// Opens a provider and learns its root, which must be the remembered one if any is to be; the first to come stores
    /// it. It goes on while the API server is away, for as long as it takes, and `waiting` is told why: the caller sets
    /// the limit by dropping the future.
    ///
    /// # Errors
    /// [`IssueError`] when an outside provider does not answer, or a root is not fit for use. Nothing was replaced:
    /// the caller tells somebody, is not ready, and tries again after a while.
    pub async fn open(
        client: kube::Client,
        provider: &Provider,
        mut waiting: impl FnMut(&str),
    ) -> Result<Self, IssueError> {
        match provider {
            Provider::Tresor {
                namespace,
                secret,
                labels,
            } => {
                let store = SecretStore::new(client, namespace, secret, labels.clone());
                let waiting = |error: &StoreError| waiting(&error.to_string());
                let authority =
                    tresor::load_or_create(&store, KeyKind::P256, Timestamp::now, waiting).await?;
                Ok(Self::local(authority, Some(store)))
            }
            Provider::Vault { options, memory } => {
                let vault = Vault::open(Some(client.clone()), options.clone()).await?;
                if let Some(memory) = memory {
                    memory.agree(client, vault.roots(), waiting).await?;
                }
                Ok(Self::vault(vault))
            }
            Provider::CertManager { options, memory } => {
                let issuer = Box::pin(CertManager::open(client.clone(), options.clone())).await?;
                if let Some(memory) = memory {
                    memory.agree(client, issuer.roots(), waiting).await?;
                }
                Ok(Self::cert_manager(issuer))
            }
        }
    }

    /// One that signs with `authority`, which is stored nowhere.
    pub fn from_authority(authority: Authority) -> Self {
        Self::local(authority, None)
    }

    fn new(signer: Signer, roots: TrustBundle) -> Self {
        let first = roots.roots().first();
        let fingerprint = first.map(Root::fingerprint).unwrap_or_default().into();
        Self {
            inner: Arc::new(Inner {
                signer,
                roots,
                fingerprint,
                token: Arc::default(),
            }),
        }
    }

    fn local(authority: Authority, store: Option<SecretStore>) -> Self {
        let roots = TrustBundle::new([authority.root().clone()]);
        let authority = Arc::new(authority);
        let store = store.map(Box::new);
        Self::new(Signer::Local { authority, store }, roots)
    }

    pub(super) fn cert_manager(signer: CertManager) -> Self {
        let roots = signer.roots().clone();
        Self::new(Signer::CertManager(Box::new(signer)), roots)
    }

    pub(super) fn vault(signer: Vault) -> Self {
        let roots = signer.roots().clone();
        let signer = Arc::new(signer);
        tokio::spawn(vault::keep_token(Arc::downgrade(&signer)));
        Self::new(Signer::Vault(signer), roots)
    }

    /// Its root, as a bundle.
    pub fn roots(&self) -> &TrustBundle {
        &self.inner.roots
    }

    /// SHA-256 of its root.
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.inner.fingerprint
    }

    /// How many of the leaves it signed are held in this process.
    pub fn leaves(&self) -> usize {
        Arc::strong_count(&self.inner.token) - 1
    }

    pub(super) async fn issue(&self, request: &LeafRequest) -> Result<Leaf, IssueError> {
        let leaf = match &self.inner.signer {
            Signer::Vault(vault) => Box::pin(vault.issue(request)).await?,
            Signer::CertManager(issuer) => Box::pin(issuer.issue(request)).await?,
            Signer::Local { authority, .. } => return Ok(self.mark(self.sign(authority, request).await?)),
        };
        verify::check(&leaf, request, &self.inner.roots, Timestamp::now())?;
        Ok(self.mark(leaf))
    }

    fn mark(&self, mut leaf: Leaf) -> Leaf {
        leaf.signed_by(self.inner.fingerprint.clone(), self.inner.token.clone());
        leaf
    }

    async fn sign(&self, authority: &Arc<Authority>, request: &LeafRequest) -> Result<Leaf, IssueError> {
        if !authority.is_slow() && request.key == KeyKind::P256 {
            return authority.sign(request, Timestamp::now());
        }
        let (authority, request) = (authority.clone(), request.clone());
        let sign = move || authority.sign(&request, Timestamp::now());
        let signed = tokio::task::spawn_blocking(sign).await;
        signed.unwrap_or_else(|error| Err(IssueError::Signing(error.to_string())))
    }

    /// Compares the root in use with the stored one.
    pub(super) async fn check(&self) -> RootState {
        match &self.inner.signer {
            Signer::Vault(vault) => vault.check().await,
            Signer::CertManager(issuer) => Box::pin(issuer.check()).await,
            Signer::Local { store: None, .. } => RootState::Same,
            Signer::Local { authority, store: Some(store) } => match store.read().await {
                Ok(Some(stored)) => match Root::from_pem(&stored.certificate) {
                    Ok(root) if root == *authority.root() => RootState::Same,
                    Ok(_) => RootState::Differs(
                        "the stored root is not the one in use; rotate roots with `osm certificate rotate`, or \
                         restart the control plane and all meshed pods"
                            .into(),
                    ),
                    Err(error) => RootState::Differs(format!("the stored root is unfit: {error}")),
                },
                Ok(None) => RootState::Differs("the stored root is gone; restore it from a backup".into()),
                Err(StoreError::Malformed(message)) => RootState::Differs(message),
                Err(StoreError::Temporary(message)) => RootState::Unknown(message),
            },
        }
    }
}
