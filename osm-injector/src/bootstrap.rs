//! Writing a pod's bootstrap Secret.
//!
//! Invariants: for one request there is one Secret, whoever of the replicas writes it and however often; what is found
//! in its place is used only if an earlier or concurrent delivery of the same request wrote it; nothing secret is
//! logged or returned.

use std::{fmt, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use osm_core::{
    certificate::{Profile, TrustBundle},
    identity::{ProxyIdentity, TrustDomain},
    injection::{BootstrapSecret, ForeignSecret, secret_name, trust_bundle_tag},
};
use osm_runtime::{
    backoff::Backoff,
    client::{ClientError, within},
    issuer::{IssueError, Issuer, Leaf, LeafRequest},
    metrics::Metrics,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use tokio::time::Instant;

/// Longest time for one call. The webhook's own deadline ends all of them together.
const CALL: Duration = Duration::from_secs(5);

/// Why a pod has no Secret.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// No certificate.
    #[error("no certificate could be issued for the sidecar: {0}; see the log of osm-injector")]
    Issue(#[from] IssueError),
    /// The quota of the namespace.
    #[error(
        "namespace {namespace} has no room for the sidecar's Secret ({message}): raise the quota of secrets, each pod \
         of the mesh needs one, or delete unused ones"
    )]
    Quota {
        /// The namespace.
        namespace: String,
        /// What the API server says.
        message: String,
    },
    /// Missing permission.
    #[error(
        "osm-injector may not write Secrets in namespace {namespace} ({message}): restore its ClusterRole with `osm \
         mesh upgrade`"
    )]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// What the API server says.
        message: String,
    },
    /// Somebody else's Secret.
    #[error(transparent)]
    Foreign(#[from] ForeignSecret),
    /// Kubernetes does not answer, or answers that it cannot.
    #[error("the sidecar's Secret could not be written: {0}; try again")]
    Api(ClientError),
}

impl BootstrapError {
    /// Whether the same request may succeed soon.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Issue(_) => true,
            Self::Api(error) => error.is_temporary() || error.is_conflict(),
            Self::Quota { .. } | Self::Forbidden { .. } | Self::Foreign(_) => false,
        }
    }

    fn of(error: ClientError, namespace: &str) -> Self {
        if !error.is_forbidden() {
            return Self::Api(error);
        }
        let (namespace, message) = (namespace.to_owned(), error.to_string());
        if message.contains("exceeded quota") {
            Self::Quota { namespace, message }
        } else if message.contains("being terminated") {
            Self::Api(error)
        } else {
            Self::Forbidden { namespace, message }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Deed {
    action: &'static str,
}

/// Metrics of certificates and Secrets.
#[derive(Clone, Debug)]
pub struct BootstrapMetrics {
    issued: Counter,
    seconds: Histogram,
    secrets: Family<Deed, Counter>,
}

impl Default for BootstrapMetrics {
    fn default() -> Self {
        let seconds = Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0]);
        Self {
            issued: Counter::default(),
            seconds,
            secrets: Family::default(),
        }
    }
}

impl BootstrapMetrics {
    /// Registers them; the names of the first two are the original's.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register("osm_cert_issued_count", "Certificates issued", new.issued.clone());
            registry.register(
                "osm_cert_issued_time",
                "Seconds to issue a certificate",
                new.seconds.clone(),
            );
            let help =
                "What was done to bootstrap Secrets: created, found, adopted, renewed, deleted, failed";
            registry.register("osm_injector_bootstrap_secrets", help, new.secrets.clone());
        });
        new
    }

    /// Counts something done to a Secret.
    pub fn count(&self, action: &'static str) {
        self.secrets.get_or_create(&Deed { action }).inc();
    }
}

/// Makes bootstrap Secrets. Cheap to clone.
#[derive(Clone)]
pub struct Bootstraps {
    client: Client,
    issuer: Issuer,
    owner: Owner,
    metrics: BootstrapMetrics,
}

/// What every Secret says about the mesh.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The mesh's name.
    pub mesh_name: String,
    /// The control plane's version.
    pub version: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// How long certificates are valid.
    pub validity: Duration,
}

/// A certificate and the roots of the moment it was issued.
pub(crate) struct Issued {
    leaf: Leaf,
    key: String,
    roots: TrustBundle,
    signer: String,
}

impl fmt::Debug for Bootstraps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bootstraps({:?})", self.issuer)
    }
}

impl Bootstraps {
    /// Secrets with certificates of `issuer`.
    pub fn new(client: Client, issuer: Issuer, owner: Owner, metrics: BootstrapMetrics) -> Self {
        Self {
            client,
            issuer,
            owner,
            metrics,
        }
    }

    /// Sees to it that the Secret of this request's proxy exists. The caller bounds the time by dropping the future:
    /// whatever was done by then is found and used by the next delivery, or collected.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub async fn ensure(
        &self,
        proxy: &ProxyIdentity,
        request_uid: &str,
        bootstrap: &str,
    ) -> Result<(), BootstrapError> {
        let issued = self.issue(proxy).await?;
        let wanted = self.describe(proxy, request_uid, bootstrap, &issued);
        let namespace = proxy.service.namespace.as_ref();
        let (api, name) = (
            Api::<Secret>::namespaced(self.client.clone(), namespace),
            secret_name(proxy.uuid),
        );
        let secret = wanted.build();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let failure = match within(CALL, api.create(&PostParams::default(), &secret)).await {
                Ok(_) => {
                    self.metrics.count("created");
                    return Ok(());
                }
                Err(error) if error.is_conflict() => match within(CALL, api.get_opt(&name)).await {
                    Ok(Some(found)) => {
                        wanted.recognise(&found)?;
                        self.metrics.count("found");
                        return Ok(());
                    }
                    // Deleted between the two calls: it is free now.
                    Ok(None) => error,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if !(failure.is_temporary() || failure.is_conflict()) || backoff.attempts() >= 4 {
                self.metrics.count("failed");
                return Err(BootstrapError::of(failure, namespace));
            }
            // It may have been written all the same; then the next attempt finds it.
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Issues a certificate for the proxy.
    pub(crate) async fn issue(&self, proxy: &ProxyIdentity) -> Result<Issued, IssueError> {
        let begun = Instant::now();
        let profile = Profile::proxy(proxy, &self.owner.trust_domain);
        let roots = self.issuer.roots();
        let leaf = self
            .issuer
            .issue(&LeafRequest::new(profile, self.owner.validity))
            .await?;
        self.metrics.issued.inc();
        self.metrics.seconds.observe(begun.elapsed().as_secs_f64());
        let key = leaf.key_pem().to_string();
        let signer = tagged(&roots, leaf.signer());
        Ok(Issued {
            leaf,
            key,
            roots,
            signer,
        })
    }

    /// The Secret, described.
    pub(crate) fn describe<'a>(
        &'a self,
        proxy: &'a ProxyIdentity,
        request_uid: &'a str,
        bootstrap: &'a str,
        issued: &'a Issued,
    ) -> BootstrapSecret<'a> {
        BootstrapSecret {
            proxy,
            mesh_name: &self.owner.mesh_name,
            version: &self.owner.version,
            request_uid,
            bootstrap,
            certificate: issued.leaf.chain_pem(),
            key: &issued.key,
            roots: issued.roots.pem(),
            signer: &issued.signer,
            not_after: issued.leaf.validity().not_after,
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn metrics(&self) -> &BootstrapMetrics {
        &self.metrics
    }

    pub(crate) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// The tag of a Secret that holds the present roots and a certificate of the present signer.
    pub(crate) fn tag(&self) -> String {
        let roots = self.issuer.roots();
        trust_bundle_tag(roots.pem(), &tagged(&roots, &self.issuer.signer()))
    }
}

/// The signer as it enters the tag: only where there is a choice.
fn tagged(roots: &TrustBundle, signer: &str) -> String {
    match roots.roots().len() {
        0 | 1 => String::new(),
        _ => signer.to_owned(),
    }
}
