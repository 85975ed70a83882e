//! Roots and certificates, as every component has them: opened, followed, kept fresh, reported on.

use osm_core::certificate::{Profile, SERVER_LIFETIME, rotation::Objects};
use tokio::sync::watch;

use super::Component;
use crate::{
    issuer::{Issuer, LeafRequest},
    renewal,
    roots::{self, Delay, Keeper, Setting, Usage},
    tls::{ServerCertificate, TlsError},
    webhook::bundle::{self, Configuration},
};

impl Component {
    /// Follows the MeshRootCertificates: those of this moment, `None` until they were listed.
    pub fn follow_roots(&self, setting: &Setting) -> watch::Receiver<Option<Objects>> {
        let (known, objects) = watch::channel(None);
        tokio::spawn(roots::follow(
            self.client.clone(),
            setting.home.clone(),
            known,
            self.health.condition("meshrootcertificates"),
            self.watch_metrics.clone(),
            self.shutdown.stop.clone(),
        ));
        objects
    }

    /// Opens the source of certificates, for as long as it takes; `None` when it is time to leave before that. A root that
    /// is not fit for use is reported and looked at again: the operator may repair it.
    pub async fn open_roots(
        &self,
        setting: &Setting,
        objects: &watch::Receiver<Option<Objects>>,
    ) -> Option<(Issuer, Keeper)> {
        let waiting = |delay: Delay| {
            self.listeners.set_not_ready(delay.to_string());
            if let Delay::Failed(error) = delay {
                tracing::error!(%error, "there is no root to use yet");
                self.warn(error.reason(), &error.to_string());
            }
        };
        let opening = roots::open_at_last(self.client.clone(), setting.clone(), objects.clone(), waiting);
        let (issuer, keeper) = tokio::select! {
            opened = opening => opened,
            () = self.shutdown.stop.cancelled() => return None,
        };
        issuer.register_roots(&self.metrics);
        self.status.follow_roots(issuer.watch_roots());
        Some((issuer, keeper))
    }

    /// A certificate for a server, kept fresh: none until the first has been issued. It is a condition of readiness, of
    /// this name, and shown in `/status`.
    pub fn keep_certificate(
        &self,
        issuer: &Issuer,
        name: &'static str,
        profile: Profile,
    ) -> ServerCertificate {
        let certificate = ServerCertificate::new();
        let condition = self.health.condition(name);
        condition.set_not_ready("no certificate has been issued yet");
        let (presented, status) = (certificate.clone(), self.status.clone());
        tokio::spawn(renewal::keep(
            issuer.clone(),
            LeafRequest::new(profile, SERVER_LIFETIME),
            condition,
            self.shutdown.stop.clone(),
            move |leaf| {
                presented.set(leaf)?;
                status.certificate(name, leaf.validity());
                Ok::<(), TlsError>(())
            },
        ));
        certificate
    }

    /// Warns when the root in use is not the stored one any more, which also costs readiness, and when certificates can no
    /// longer be issued, which does not.
    pub fn guard_roots(&self, issuer: &Issuer) {
        let condition = self.health.condition("root");
        let stop = &self.shutdown.stop;
        let component = self.clone();
        tokio::spawn(renewal::guard_root(
            issuer.clone(),
            condition,
            stop.clone(),
            move |message| {
                tracing::error!(message, "the root certificate");
                component.warn("RootCertificateProblem", message);
            },
        ));
        let component = self.clone();
        tokio::spawn(renewal::report_trouble(
            issuer.clone(),
            stop.clone(),
            move |trouble| component.warn(trouble.reason, &trouble.message),
        ));
    }

    /// Keeps the trusted roots in the webhook configuration of this name, under a field manager of the component's own.
    pub fn keep_bundle<K: Configuration>(&self, issuer: &Issuer, configuration: &str) {
        let (name, manager) = (configuration.to_owned(), format!("{}-ca-bundle", self.name));
        let (client, roots) = (self.client.clone(), issuer.watch_roots());
        let (metrics, stop) = (self.watch_metrics.clone(), self.shutdown.stop.clone());
        tokio::spawn(async move { bundle::keep::<K>(client, &name, &manager, roots, metrics, stop).await });
    }

    /// Keeps the roots in step with the MeshRootCertificates, and reports in their status, with what `usage` knows of
    /// their use.
    pub fn keep_roots<F>(
        &self,
        keeper: Keeper,
        objects: &watch::Receiver<Option<Objects>>,
        usage: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Usage> + Send + 'static,
    {
        let reporter = roots::Reporter {
            component: self.name,
            replica: self.pod.clone(),
            namespace: self.namespace.clone(),
        };
        let (client, objects, standing) = (self.client.clone(), objects.clone(), keeper.standing());
        let stop = self.shutdown.stop.clone();
        tokio::spawn(roots::report(
            client,
            reporter,
            objects,
            standing,
            usage,
            stop.clone(),
        ));
        tokio::spawn(keeper.keep(stop));
    }
}
