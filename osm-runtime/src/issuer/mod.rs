//! Who signs the mesh's certificates: Tresor (built in), Vault or cert-manager.
//!
//! Owns the providers behind one type: usually one, two while a root is being rotated, of which one signs. Invariants:
//! every replica of every binary ends with the same roots; a provider's expired or different root is reported, never
//! taken over silently; what signs is trusted.

mod authority;
mod cert_manager;
mod flags;
mod gate;
mod leaf;
mod member;
mod pin;
#[cfg(test)]
mod tests;
pub mod tresor;
mod trouble;
mod vault;
#[cfg(test)]
mod vault_tests;
mod verify;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use osm_core::certificate::{
    RootError, TrustBundle,
    rotation::{SecretKey, Source},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use tokio::sync::watch;

pub use authority::{Authority, StoredRoot};
#[cfg(test)]
use cert_manager::CertManager;
pub use cert_manager::CertManagerOptions;
pub use flags::{CertificateManager, FlagError, ProviderFlags};
pub use leaf::{KeyKind, Leaf, LeafRequest};
pub use member::Member;
pub use trouble::Trouble;
#[cfg(test)]
use vault::Vault;
pub use vault::{Token, VaultOptions};

use crate::metrics::Metrics;

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The root is not fit for use.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What is stored in place of a root is incomplete.
    #[error("{0}")]
    Store(String),
    /// Signing failed.
    #[error("a certificate cannot be signed: {0}")]
    Signing(String),
    /// The provider cannot be reached, or refuses.
    #[error("the certificate provider failed: {0}")]
    Provider(String),
    /// The provider's answer does not serve.
    #[error("the certificate provider's answer does not serve: {0}")]
    Answer(String),
    /// The provider failed a moment ago, and is left alone for a while.
    #[error("the certificate provider failed and is left alone for a while: {0}")]
    Closed(String),
    /// It took too long.
    #[error("no certificate after {} seconds", .0.as_secs())]
    Timeout(Duration),
}

impl IssueError {
    /// The reason of an Event about it; the names are the original's where it had one.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Root(_) | Self::Store(_) => "RootCertificateProblem",
            _ => "CertificateIssuanceFailure",
        }
    }
}

/// How the root in use compares with the one that is stored, or that the provider names, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootState {
    /// The same.
    Same,
    /// Another one, none, or something unfit; with what to tell the operator. The one in use stays in use.
    Differs(String),
    /// Could not be found out (the API server or the provider does not answer): no reason to worry yet.
    Unknown(String),
}

/// Where certificates come from.
#[derive(Clone, Debug)]
pub enum Provider {
    /// The root in a Secret.
    Tresor {
        /// The control plane's namespace.
        namespace: String,
        /// The Secret, `osm-ca-bundle` unless the chart says otherwise.
        secret: String,
        /// Labels of the Secret, when it is made here.
        labels: BTreeMap<String, String>,
    },
    /// HashiCorp Vault.
    Vault {
        /// How to reach it.
        options: VaultOptions,
        /// Where its root is remembered, if it is.
        memory: Option<RootSecret>,
    },
    /// cert-manager.
    CertManager {
        /// Which issuer.
        options: CertManagerOptions,
        /// Where its root is remembered, if it is.
        memory: Option<RootSecret>,
    },
}

/// The Secret that remembers the root of a provider outside: its certificate, for replicas to come.
#[derive(Clone, Debug)]
pub struct RootSecret {
    /// The control plane's namespace.
    pub namespace: String,
    /// Its name, `osm-ca-bundle` unless the chart says otherwise.
    pub name: String,
    /// Labels of the Secret, when it is made here.
    pub labels: BTreeMap<String, String>,
}

impl Provider {
    /// Where its root comes from, as the rules of rotation tell roots apart.
    pub fn source(&self) -> Source {
        match self.clone() {
            Self::Tresor { secret, .. } => Source::Tresor { secret },
            Self::Vault {
                options: VaultOptions {
                    address, role, token, ..
                },
                ..
            } => Source::Vault {
                protocol: address.scheme_str().unwrap_or_default().to_owned(),
                host: address.host().unwrap_or_default().to_owned(),
                port: address.port_u16().unwrap_or(vault::PORT),
                role,
                token: match token {
                    Token::Literal(_) => None,
                    Token::Secret { name, key, .. } => Some(SecretKey { name, key }),
                },
            },
            Self::CertManager {
                options: CertManagerOptions {
                    issuer, kind, group, ..
                },
                ..
            } => Source::CertManager { issuer, kind, group },
        }
    }

    /// The same, whose root is not compared with one that was remembered.
    pub fn forgetful(mut self) -> Self {
        if let Self::Vault { memory, .. } | Self::CertManager { memory, .. } = &mut self {
            *memory = None;
        }
        self
    }

    /// The provider of a source that an object names. Secrets are those of `namespace`; `labels` are put on one that
    /// is made here; `authorities` is [`VaultOptions::authorities`], `owner` [`CertManagerOptions::owner`].
    ///
    /// # Errors
    /// [`IssueError::Provider`] when no address can be made of it.
    pub fn of(
        source: &Source,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        authorities: Option<&Path>,
        owner: Option<&OwnerReference>,
    ) -> Result<Self, IssueError> {
        let namespace = namespace.to_owned();
        Ok(match source.clone() {
            Source::Tresor { secret } => Self::Tresor {
                namespace,
                secret,
                labels: labels.clone(),
            },
            Source::Vault {
                protocol,
                host,
                port,
                role,
                token,
            } => {
                let address = format!("{protocol}://{host}:{port}");
                let unusable = |_| IssueError::Provider(format!("{address:?} is not the address of a Vault"));
                let token = token.map_or(Token::Literal(String::new().into()), |SecretKey { name, key }| {
                    Token::Secret { namespace, name, key }
                });
                Self::Vault {
                    options: VaultOptions {
                        address: address.parse().map_err(unusable)?,
                        role,
                        token,
                        authorities: authorities.map(Path::to_owned),
                    },
                    memory: None,
                }
            }
            Source::CertManager { issuer, kind, group } => Self::CertManager {
                options: CertManagerOptions {
                    namespace,
                    issuer,
                    kind,
                    group,
                    owner: owner.cloned(),
                },
                memory: None,
            },
        })
    }
}

/// The mesh's source of certificates. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    arrangement: ArcSwap<Arrangement>,
    roots: watch::Sender<TrustBundle>,
    signer: watch::Sender<Arc<str>>,
    trouble: watch::Sender<Option<Trouble>>,
    metrics: IssueMetrics,
}

/// Who signs, and who else is trusted.
struct Arrangement {
    signs: Member,
    /// All whose roots are trusted, the signing one among them.
    trusts: Vec<Member>,
}

impl Arrangement {
    fn bundle(&self) -> TrustBundle {
        #[cfg(feature = "sabotage")]
        if osm_core::sabotage::Fault::NoOverlap.is_on() {
            return self.signs.roots().clone();
        }
        let empty = TrustBundle::default();
        self.trusts
            .iter()
            .fold(empty, |bundle, member| bundle.union(member.roots()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RootLabel {
    fingerprint: String,
}

struct IssueMetrics {
    issued: Counter,
    failed: Counter,
    time: Histogram,
    /// By root, of which there are two at most.
    signing: Family<RootLabel, Gauge>,
    expiry: Family<RootLabel, Gauge>,
}

impl Default for IssueMetrics {
    fn default() -> Self {
        let time = Histogram::new([0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 90.0]);
        Self {
            issued: Counter::default(),
            failed: Counter::default(),
            time,
            signing: Family::default(),
            expiry: Family::default(),
        }
    }
}

impl IssueMetrics {
    fn show(&self, arrangement: &Arrangement) {
        self.signing.clear();
        self.expiry.clear();
        for member in &arrangement.trusts {
            let label = RootLabel {
                fingerprint: member.fingerprint().to_string(),
            };
            let signs = member.fingerprint() == arrangement.signs.fingerprint();
            self.signing.get_or_create(&label).set(i64::from(signs));
            if let Some(root) = member.roots().roots().first() {
                let end = root.validity().not_after.as_second();
                self.expiry.get_or_create(&label).set(end);
            }
        }
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({:?})", self.inner.arrangement.load().signs)
    }
}

impl Issuer {
    /// Opens one provider, as [`Member::open`] does.
    ///
    /// # Errors
    /// As [`Member::open`].
    pub async fn open(
        client: kube::Client,
        provider: &Provider,
        waiting: impl FnMut(&str),
    ) -> Result<Self, IssueError> {
        Ok(Self::of(Member::open(client, provider, waiting).await?))
    }

    /// An issuer with one root.
    pub fn of(member: Member) -> Self {
        let trusts = vec![member.clone()];
        Self::arranged(member, trusts)
    }

    /// An issuer that signs with `signs`, and whose bundle holds the roots of `trusts` too.
    pub fn arranged(signs: Member, trusts: Vec<Member>) -> Self {
        let arrangement = arrangement(signs, trusts);
        let metrics = IssueMetrics::default();
        metrics.show(&arrangement);
        Self {
            inner: Arc::new(Inner {
                roots: watch::channel(arrangement.bundle()).0,
                signer: watch::channel(arrangement.signs.fingerprint().clone()).0,
                arrangement: ArcSwap::from_pointee(arrangement),
                trouble: watch::channel(None).0,
                metrics,
            }),
        }
    }

    /// Signs with `signs` and trusts `trusts` from now on. Whoever follows [`Issuer::watch_roots`] and
    /// [`Issuer::watch_signer`] is told, in an order in which nothing is signed by a root that is not trusted.
    pub fn arrange(&self, signs: Member, trusts: Vec<Member>) {
        let next = arrangement(signs, trusts);
        self.inner.metrics.show(&next);
        let (bundle, signer) = (next.bundle(), next.signs.fingerprint().clone());
        // Both bundles first: a leaf that is being signed by the old root must find it trusted.
        let tell = |bundle: TrustBundle| {
            self.inner.roots.send_if_modified(|known| {
                *known != bundle && {
                    *known = bundle;
                    true
                }
            })
        };
        tell(self.roots().union(&bundle));
        self.inner.arrangement.store(Arc::new(next));
        tell(bundle);
        self.inner.signer.send_if_modified(|known| {
            *known != signer && {
                *known = signer;
                true
            }
        });
    }

    /// An issuer that signs with `authority` alone: for tests and for a mesh without Kubernetes.
    pub fn from_authority(authority: Authority) -> Self {
        Self::of(Member::from_authority(authority))
    }

    #[cfg(test)]
    fn vault(vault: Vault) -> Self {
        Self::of(Member::vault(vault))
    }

    #[cfg(test)]
    fn cert_manager(issuer: CertManager) -> Self {
        Self::of(Member::cert_manager(issuer))
    }

    /// Shows in `metrics` how many certificates are issued and how long that takes; the names are the original's.
    pub fn register(&self, metrics: &Metrics) {
        let IssueMetrics {
            issued, failed, time, ..
        } = &self.inner.metrics;
        metrics.register(|registry| {
            registry.register("osm_cert_issued_count", "Certificates issued", issued.clone());
            registry.register(
                "osm_cert_issue_failures",
                "Certificates that could not be issued",
                failed.clone(),
            );
            registry.register(
                "osm_cert_issued_time",
                "Seconds it took to issue a certificate",
                time.clone(),
            );
        });
    }

    /// Shows in `metrics` which roots are in use.
    pub fn register_roots(&self, metrics: &Metrics) {
        let IssueMetrics { signing, expiry, .. } = &self.inner.metrics;
        let (signing, expiry) = (signing.clone(), expiry.clone());
        metrics.register(move |registry| {
            let help = "The trusted roots, by SHA-256: 1 for the one that signs, 0 for others";
            registry.register("osm_root_signing", help, signing);
            let help = "Unix time at which a trusted root expires";
            registry.register("osm_root_expiry_seconds", help, expiry);
        });
    }

    /// The roots to trust.
    pub fn roots(&self) -> TrustBundle {
        self.inner.roots.borrow().clone()
    }

    /// The roots to trust, as they change.
    pub fn watch_roots(&self) -> watch::Receiver<TrustBundle> {
        self.inner.roots.subscribe()
    }

    /// The fingerprint of the root that signs.
    pub fn signer(&self) -> Arc<str> {
        self.inner.signer.borrow().clone()
    }

    /// The fingerprint of the root that signs, as it changes: what another one signed is to be renewed.
    pub fn watch_signer(&self) -> watch::Receiver<Arc<str>> {
        self.inner.signer.subscribe()
    }

    /// Whether certificates cannot be issued at present, as that changes.
    pub fn watch_trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.inner.trouble.subscribe()
    }

    /// Issues a leaf with a new key.
    ///
    /// # Errors
    /// [`IssueError`]; the caller goes on with what it has and tries again ([`crate::renewal`] does).
    pub async fn issue(&self, request: &LeafRequest) -> Result<Leaf, IssueError> {
        let begun = Instant::now();
        let signer = self.inner.arrangement.load().signs.clone();
        let outcome = signer.issue(request).await;
        match &outcome {
            Ok(_) => {
                self.inner.metrics.issued.inc();
                self.inner.metrics.time.observe(begun.elapsed().as_secs_f64());
            }
            Err(_) => {
                self.inner.metrics.failed.inc();
            }
        }
        trouble::note(&self.inner.trouble, &request.profile.common_name, &outcome);
        outcome
    }

    /// Compares the roots in use with the stored ones: the worst of what is found.
    pub async fn check(&self) -> RootState {
        let members = self.inner.arrangement.load().trusts.clone();
        let mut worst = RootState::Same;
        for member in members {
            match (member.check().await, &worst) {
                (RootState::Same, _) => {}
                (RootState::Unknown(_), RootState::Differs(_)) => {}
                (state, _) => worst = state,
            }
        }
        worst
    }
}

fn arrangement(signs: Member, mut trusts: Vec<Member>) -> Arrangement {
    if !trusts
        .iter()
        .any(|member| member.fingerprint() == signs.fingerprint())
    {
        trusts.push(signs.clone());
    }
    Arrangement { signs, trusts }
}
