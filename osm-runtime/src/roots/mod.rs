//! The roots in use, in step with the MeshRootCertificates.
//!
//! Owns the opening of the providers that objects name, and the issuer's arrangement; what is to be in use is decided
//! in [`osm_core::certificate::rotation`]. Invariants: an arrangement is taken on whole or not at all: while a root of it
//! cannot be loaded, or the objects contradict each other, the last one stays, and the status of the objects says why;
//! every replica that sees the same objects ends with the same arrangement.

mod objects;
mod status;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use osm_core::{
    api::names,
    certificate::rotation::{self, Home, Objects, Plan, PlanError, Source},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use objects::follow;
pub use status::{Reporter, Usage, report};

use crate::{
    backoff::Backoff,
    issuer::{IssueError, Issuer, Member, Provider},
};

/// Longest time the opening of one provider may take before it is tried again.
const OPENING: Duration = Duration::from_secs(60);
/// Longest wait between attempts to open a provider.
const OPEN_WAIT: Duration = Duration::from_secs(30);

/// What roots are opened with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What objects are read against.
    pub home: Home,
    /// The provider that the installation configures; its source is `home.configured`.
    pub configured: Provider,
    /// Labels of Secrets that are made for a root.
    pub labels: BTreeMap<String, String>,
    /// A PEM file of the CAs that may have signed the certificate of a Vault that objects name.
    pub authorities: Option<PathBuf>,
    /// The pod this runs in, if it runs in one.
    pub owner: Option<OwnerReference>,
}

/// Why no arrangement can be taken on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// The objects contradict each other.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A root cannot be loaded.
    #[error("the root of {root} cannot be loaded: {error}")]
    Open {
        /// Which one.
        root: String,
        /// Why.
        error: IssueError,
    },
}

impl RootsError {
    /// The reason of an Event about it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Plan(_) => "RootCertificateProblem",
            Self::Open { error, .. } => error.reason(),
        }
    }
}

/// Why there is no issuer yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Delay {
    /// The API server does not answer; it is asked again.
    #[error("waiting for the root certificate: {0}")]
    Store(String),
    /// A provider failed, or a root is not fit for use; it is tried again after a while.
    #[error(transparent)]
    Failed(RootsError),
}

/// What is in force, for reports.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The arrangement in force.
    pub plan: Plan,
    /// The root of each member of the plan, in its order.
    pub members: Vec<Member>,
    /// The objects that are in force, by name: their generation when it was taken on.
    pub generations: BTreeMap<String, i64>,
    /// Why the present objects are not in force, if they are not.
    pub problem: Option<RootsError>,
}

/// Keeps an issuer's arrangement in step with the objects.
pub struct Keeper {
    client: Client,
    setting: Setting,
    objects: watch::Receiver<Option<Objects>>,
    issuer: Issuer,
    standing: watch::Sender<Standing>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keeper({:?})", self.issuer)
    }
}

/// As [`open`], for as long as it takes: after a failure it is tried again, with backoff and jitter; the caller ends it
/// by dropping the future. `waiting` is told why it takes long, each time: an operator must hear of [`Delay::Failed`].
pub async fn open_at_last(
    client: Client,
    setting: Setting,
    objects: watch::Receiver<Option<Objects>>,
    mut waiting: impl FnMut(Delay),
) -> (Issuer, Keeper) {
    let mut backoff = Backoff::new(Duration::from_secs(1), OPEN_WAIT);
    loop {
        let store = |reason: &str| waiting(Delay::Store(reason.to_owned()));
        match Box::pin(open(client.clone(), setting.clone(), objects.clone(), store)).await {
            Ok(opened) => return opened,
            Err(error) => waiting(Delay::Failed(error)),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Opens the roots that the objects name; the configured provider, when there are none. Waits until the objects are
/// known; `waiting` is told why it takes long.
///
/// # Errors
/// [`RootsError`]. Nothing was replaced: the caller tells somebody, is not ready, and tries again after a while.
pub async fn open(
    client: Client,
    setting: Setting,
    mut objects: watch::Receiver<Option<Objects>>,
    mut waiting: impl FnMut(&str),
) -> Result<(Issuer, Keeper), RootsError> {
    if objects.borrow().is_none() {
        waiting("the MeshRootCertificates have not been listed yet");
    }
    let known = objects
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|known| known.clone());
    let known = match known {
        Some(known) => known,
        // Nobody follows them: the process is leaving.
        None => std::future::pending().await,
    };
    let plan = rotation::plan(&setting.home.configured, &known)?;
    let mut members = Vec::new();
    for member in &plan.trusts {
        let provider = setting
            .provider(member)
            .map_err(|error| failed(&member.source, error))?;
        let opened = Member::open(client.clone(), &provider, &mut waiting).await;
        members.push(opened.map_err(|error| failed(&member.source, error))?);
    }
    let standing = Standing {
        generations: generations(&known),
        plan,
        members,
        problem: None,
    };
    let issuer = Issuer::arranged(standing.signs(), standing.members.clone());
    let keeper = Keeper {
        client,
        setting,
        objects,
        issuer: issuer.clone(),
        standing: watch::channel(standing).0,
    };
    Ok((issuer, keeper))
}

fn failed(source: &Source, error: IssueError) -> RootsError {
    RootsError::Open {
        root: source.to_string(),
        error,
    }
}

fn generations(objects: &Objects) -> BTreeMap<String, i64> {
    let generation = |(name, object): (&String, &rotation::RootObject)| (name.clone(), object.generation);
    objects.readable.iter().map(generation).collect()
}

/// The objects without what replicas say of them, which decides nothing here.
fn roles(objects: Option<&Objects>) -> Objects {
    let mut objects = objects.cloned().unwrap_or_default();
    objects
        .readable
        .values_mut()
        .for_each(|object| object.reports.clear());
    objects
}

impl Setting {
    fn provider(&self, member: &rotation::Member) -> Result<Provider, IssueError> {
        let source = &member.source;
        if !source.is_same(&self.home.configured) {
            return Provider::of(
                source,
                &self.home.namespace,
                &self.labels,
                self.authorities.as_deref(),
                self.owner.as_ref(),
            );
        }
        // What is remembered is the root the mesh began with. An object of an operator's speaks of a rotation: when the
        // installation was told of the new provider afterwards, that root is not what its own is to be held against.
        let began = member
            .object
            .as_ref()
            .is_none_or(|object| object == names::MESH_ROOT_CERTIFICATE);
        let configured = self.configured.clone();
        Ok(if began { configured } else { configured.forgetful() })
    }
}

impl Standing {
    fn signs(&self) -> Member {
        let signs = |(member, _): &(&rotation::Member, &Member)| **member == self.plan.signs;
        let found = self.plan.trusts.iter().zip(&self.members).find(signs);
        // What signs is among the trusted, and all of those are open.
        found.map_or_else(|| self.members[0].clone(), |(_, member)| member.clone())
    }

    fn opened(&self, source: &Source) -> Option<&Member> {
        let mut opened = self.plan.trusts.iter().zip(&self.members);
        opened
            .find(|(member, _)| member.source.is_same(source))
            .map(|(_, opened)| opened)
    }
}

impl Keeper {
    /// What is in force, as it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Follows the objects until `stop`.
    pub async fn keep(mut self, stop: CancellationToken) {
        let run = async {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
            loop {
                let known = roles(self.objects.borrow_and_update().as_ref());
                let retry = match self.take_on(&known).await {
                    Ok(()) => {
                        backoff.reset();
                        None
                    }
                    Err(problem) => {
                        let again = matches!(problem, RootsError::Open { .. });
                        self.complain(problem);
                        again.then(|| backoff.next_wait())
                    }
                };
                let again = async {
                    match retry {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                };
                let other = async {
                    while self.objects.changed().await.is_ok() {
                        if roles(self.objects.borrow_and_update().as_ref()) != known {
                            return;
                        }
                    }
                    std::future::pending().await
                };
                tokio::select! { () = other => {}, () = again => {} }
            }
        };
        tokio::select! { () = run => {}, () = stop.cancelled() => {} }
    }

    async fn take_on(&self, known: &Objects) -> Result<(), RootsError> {
        let plan = rotation::plan(&self.setting.home.configured, known)?;
        let before = self.standing.borrow().clone();
        let mut members = Vec::new();
        for member in &plan.trusts {
            let opened = match before.opened(&member.source) {
                Some(opened) => opened.clone(),
                None => self.open(member).await?,
            };
            members.push(opened);
        }
        let next = Standing {
            generations: generations(known),
            plan,
            members,
            problem: None,
        };
        if next.plan != before.plan {
            let names = |plan: &Plan| -> Vec<String> {
                plan.trusts
                    .iter()
                    .map(|member| member.source.to_string())
                    .collect()
            };
            let (signs, trusts) = (next.plan.signs.source.to_string(), names(&next.plan));
            tracing::info!(signs, ?trusts, "roots in use");
            if !before.plan.leads_to(&next.plan) {
                tracing::warn!(
                    "roots were exchanged in one step: sidecars may refuse each other for a while"
                );
            }
            self.issuer.arrange(next.signs(), next.members.clone());
        }
        self.standing.send_replace(next);
        Ok(())
    }

    async fn open(&self, member: &rotation::Member) -> Result<Member, RootsError> {
        let failed = |error| failed(&member.source, error);
        let provider = self.setting.provider(member).map_err(failed)?;
        let mut last = String::new();
        let waiting = |reason: &str| reason.clone_into(&mut last);
        match tokio::time::timeout(OPENING, Member::open(self.client.clone(), &provider, waiting)).await {
            Ok(opened) => opened.map_err(failed),
            Err(_) if last.is_empty() => Err(failed(IssueError::Timeout(OPENING))),
            Err(_) => Err(failed(IssueError::Provider(last))),
        }
    }

    fn complain(&self, problem: RootsError) {
        self.standing.send_if_modified(|standing| {
            let news = standing.problem.as_ref() != Some(&problem);
            if news {
                tracing::warn!(%problem, "the roots in use stay as they are");
                standing.problem = Some(problem);
            }
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use osm_core::identity::TrustDomain;

    use super::*;
    use crate::issuer::{CertManagerOptions, RootSecret};

    /// The stored root is the one the mesh began with: after a rotation to another provider, of which the installation
    /// was told then, that one's root is not held against it.
    #[test]
    fn what_is_remembered_counts_until_an_operator_rotates() {
        let namespace = String::from("osm-system");
        let configured = Provider::CertManager {
            options: CertManagerOptions {
                namespace: namespace.clone(),
                issuer: "mesh".into(),
                kind: "Issuer".into(),
                group: "cert-manager.io".into(),
                owner: None,
            },
            memory: Some(RootSecret {
                namespace: namespace.clone(),
                name: names::CA_BUNDLE_SECRET.into(),
                labels: BTreeMap::new(),
            }),
        };
        let setting = Setting {
            home: Home {
                namespace,
                trust_domain: TrustDomain::default(),
                configured: configured.source(),
            },
            configured,
            labels: BTreeMap::new(),
            authorities: None,
            owner: None,
        };
        let remembered = |object: Option<&str>, source: &Source| {
            let member = rotation::Member {
                object: object.map(str::to_owned),
                source: source.clone(),
            };
            match setting.provider(&member) {
                Ok(Provider::CertManager { memory, .. }) => memory.is_some(),
                other => panic!("{other:?}"),
            }
        };
        let own = &setting.home.configured;
        assert!(remembered(None, own));
        assert!(remembered(Some(names::MESH_ROOT_CERTIFICATE), own));
        assert!(!remembered(Some("root-2027"), own));
        let other = Source::CertManager {
            issuer: "other".into(),
            kind: "Issuer".into(),
            group: "cert-manager.io".into(),
        };
        assert!(!remembered(Some(names::MESH_ROOT_CERTIFICATE), &other));
    }
}
