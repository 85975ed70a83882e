//! The verdict on a pod.
//!
//! Thin: reads what is known, lets `osm_core::injection` decide, writes the Secret, answers.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use osm_core::{
    api::mesh_config::MeshConfigSpec,
    injection::{self, Denial, Outcome, Settings, inject},
};
use osm_runtime::webhook::review::{Request, Verdict};
use serde_json::Value;

use crate::{
    bootstrap::{BootstrapError, Bootstraps},
    config::Config,
    membership::{Membership, Memberships},
};

/// What the verdict is made from. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// The namespaces.
    pub memberships: Memberships,
    /// The mesh's settings.
    pub config: Config,
    /// What holds for all pods; nothing until it is known what the cluster can do.
    pub settings: Arc<ArcSwapOption<Settings>>,
    /// Where Secrets are written.
    pub bootstraps: Bootstraps,
}

impl Webhook {
    /// Answers one request.
    pub async fn judge(self, request: Request) -> Verdict {
        let verdict = Verdict::from(&request);
        if request.kind.kind != "Pod" || request.sub_resource.is_some() {
            return refused(
                verdict,
                400,
                "only pods are injected: correct the rules of the webhook's configuration",
            );
        }
        let Some(settings) = self.settings.load_full() else {
            return refused(verdict, 503, "osm-injector is starting; try again");
        };
        let namespace_name = request.namespace.clone().unwrap_or_default();
        let membership = match self.memberships.get(&namespace_name).await {
            Ok(membership) => membership,
            Err(error) => {
                let message = format!("namespace {namespace_name} cannot be looked up: {error}; try again");
                return refused(verdict, 503, &message);
            }
        };
        match self
            .answer(&request, &namespace_name, membership.as_deref(), &settings)
            .await
        {
            Ok(answer) => accepted(verdict, answer, &request),
            Err(refusal) => {
                let message = refusal.to_string();
                tracing::info!(
                    namespace = namespace_name,
                    pod = name(&request),
                    reason = message,
                    "denied a pod"
                );
                refused(verdict, refusal.code(), &message)
            }
        }
    }

    async fn answer(
        &self,
        request: &Request,
        namespace: &str,
        membership: Option<&Membership>,
        settings: &Settings,
    ) -> Result<Outcome, Refusal> {
        let config: Arc<MeshConfigSpec> = self.config.get();
        let pod = serde_json::to_value(&request.object).unwrap_or(Value::Null);
        let asked = injection::Request {
            uid: &request.uid,
            namespace,
            pod: &pod,
        };
        let outcome = inject(asked, membership.map(Membership::view), &config, settings)?;
        if let Outcome::Injected(injection) = &outcome
            && !request.dry_run
        {
            self.bootstraps
                .ensure(&injection.proxy, &request.uid, &injection.bootstrap)
                .await?;
        }
        Ok(outcome)
    }
}

/// Why a pod is denied.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Denial(#[from] Denial),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

impl Refusal {
    fn code(&self) -> u16 {
        match self {
            Self::Bootstrap(error) if error.is_temporary() => 503,
            _ => 403,
        }
    }
}

fn accepted(mut verdict: Verdict, outcome: Outcome, request: &Request) -> Verdict {
    let warnings = match outcome {
        Outcome::Unchanged { reason, warnings } => {
            tracing::debug!(
                namespace = request.namespace,
                pod = name(request),
                ?reason,
                "left a pod as it is"
            );
            warnings
        }
        Outcome::Injected(injection) => {
            let (proxy, dry_run) = (injection.proxy.uuid, request.dry_run);
            tracing::info!(namespace = request.namespace, pod = name(request), %proxy, dry_run, "injected a sidecar");
            verdict = match verdict.with_patch(injection.patch) {
                Ok(verdict) => verdict,
                Err(error) => return refused(Verdict::from(request), 500, &format!("no patch: {error}")),
            };
            injection.warnings
        }
    };
    verdict.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    verdict
}

fn refused(verdict: Verdict, code: u16, message: &str) -> Verdict {
    let mut verdict = verdict.deny(format!("osm-injector: {message}"));
    verdict.result.code = code;
    verdict
}

/// The pod's name, or what it will be made from.
fn name(request: &Request) -> &str {
    let metadata = request.object.as_ref().map(|object| &object.metadata);
    let name = metadata.and_then(|metadata| metadata.name.as_deref().or(metadata.generate_name.as_deref()));
    name.unwrap_or_default()
}
