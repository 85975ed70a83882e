//! The process: starts everything, in an order in which nothing waits for what comes later, and leaves gently.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use k8s_openapi::{
    api::admissionregistration::v1::MutatingWebhookConfiguration, apimachinery::pkg::version::Info,
};
use kube::Client;
use osm_core::{
    api::{names, ports},
    certificate::{
        Profile,
        rotation::{Objects, progress::Count},
    },
    injection::{Settings as InjectionSettings, StartOrder},
};
use osm_runtime::{
    CancellationToken,
    backoff::{Backoff, jittered},
    client::{CALL, within},
    component::{Component, Start},
    health::Condition,
    log::Handle,
    roots::{Setting, Usage},
    serve::{Limits, Settings, serve_tls},
    tls,
    webhook::review::{self, ReviewMetrics},
};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    args::{Args, NativeSidecar},
    bootstrap::{BootstrapMetrics, Bootstraps, Owner},
    config::Config,
    membership::Memberships,
    upkeep,
    webhook::Webhook,
};

/// The webhook's path, the original's.
const PATH: &str = "/mutate-pod-creation";
/// Most bytes of a review: a pod of 1.5 MiB, escaped, and some more.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// How often the cluster is asked for its version: it may be upgraded.
const VERSION_PERIOD: Duration = Duration::from_secs(600);

/// Runs the injector until it is told to leave.
///
/// # Errors
/// When it cannot start: an argument makes no sense, an address is taken, there is no cluster.
pub async fn run(args: Args, log: Handle) -> Result<()> {
    args.check()?;
    let flags = &args.component;
    let no_pages = Default::default();
    let begun = Start::new(names::INJECTOR, &args.pod_name, flags, no_pages)?;
    let listener = begun.listen(ports::INJECTOR_WEBHOOK, "webhook").await?;
    let component = begun.connect().await?;
    let setting = flags.setting()?;
    let starting = Starting {
        memberships: Memberships::new(component.client.clone()),
        config: Config::default(),
        settings: Arc::default(),
        args: args.clone(),
        objects: component.follow_roots(&setting),
        setting,
        component: component.clone(),
        bootstrap_metrics: BootstrapMetrics::register(&component.metrics),
        review_metrics: ReviewMetrics::register(&component.metrics),
    };
    starting.watch(log);
    component.run(starting.serve(listener)).await?;
    Ok(())
}

struct Starting {
    args: Args,
    component: Component,
    setting: Setting,
    objects: watch::Receiver<Option<Objects>>,
    memberships: Memberships,
    config: Config,
    settings: Arc<ArcSwapOption<InjectionSettings>>,
    bootstrap_metrics: BootstrapMetrics,
    review_metrics: ReviewMetrics,
}

impl Starting {
    /// Starts learning what the verdicts depend on.
    fn watch(&self, log: Handle) {
        let Component {
            health,
            client,
            watch_metrics: metrics,
            shutdown,
            ..
        } = &self.component;
        let (flags, stop) = (&self.args.component, &shutdown.stop);
        tokio::spawn({
            let (memberships, mesh) = (self.memberships.clone(), flags.mesh_name.clone());
            let synced = health.condition("namespaces");
            let (client, metrics, stop) = (client.clone(), metrics.clone(), stop.clone());
            async move { memberships.keep(client, &mesh, synced, metrics, stop).await }
        });
        tokio::spawn({
            let (config, flags) = (self.config.clone(), flags.clone());
            let synced = health.condition("mesh-config");
            let (client, metrics, stop) = (client.clone(), metrics.clone(), stop.clone());
            async move {
                let watch = Config::watch(client, &flags.osm_namespace, &flags.osm_config_name);
                config.keep(watch, log, synced, metrics, stop).await
            }
        });
        let known = health.condition("kubernetes-version");
        tokio::spawn(follow_version(
            client.clone(),
            self.args.clone(),
            self.settings.clone(),
            known,
            stop.clone(),
        ));
    }

    /// Everything that needs certificates, once there are any.
    async fn serve(self, listener: TcpListener) -> Result<()> {
        let (args, component) = (&self.args, &self.component);
        let flags = &args.component;
        let Some((issuer, keeper)) = component.open_roots(&self.setting, &self.objects).await else {
            return Ok(());
        };
        let profile = Profile::webhook(names::INJECTOR, &flags.osm_namespace);
        let certificate = component.keep_certificate(&issuer, "webhook-certificate", profile);
        component.guard_roots(&issuer);
        component.keep_bundle::<MutatingWebhookConfiguration>(&issuer, &args.webhook_config_name);

        let owner = Owner {
            mesh_name: flags.mesh_name.clone(),
            version: flags.osm_version.clone(),
            trust_domain: flags.trust_domain.clone(),
            validity: args.bootstrap_certificate_validity,
        };
        let client = component.client.clone();
        let bootstraps = Bootstraps::new(client, issuer, owner, self.bootstrap_metrics.clone());
        let leader = component.campaign();
        #[cfg(feature = "sabotage")]
        let answers = leader.clone();
        let counted = self.look_after(bootstraps.clone(), leader);
        component.keep_roots(keeper, &self.objects, move || {
            let (proxies, secrets) = (None, *counted.borrow());
            std::future::ready(Usage { proxies, secrets })
        });

        let webhook = Webhook {
            memberships: self.memberships.clone(),
            config: self.config.clone(),
            settings: self.settings.clone(),
            bootstraps,
        };
        let limits = review::Limits {
            body: MAX_BODY,
            deadline: args.deadline(),
            ..Default::default()
        };
        let router = review::router(PATH, limits, self.review_metrics.clone(), move |request| {
            #[cfg(feature = "sabotage")]
            let slow = osm_core::sabotage::Fault::SlowFollowers.is_on() && !*answers.borrow();
            let webhook = webhook.clone();
            async move {
                #[cfg(feature = "sabotage")]
                if slow {
                    tokio::time::sleep(std::time::Duration::from_secs(7)).await;
                }
                webhook.judge(request).await
            }
        });
        let settings = Settings {
            name: "webhook",
            limits: Limits::webhook(),
            metrics: component.serve_metrics.clone(),
            drain: component.shutdown.drain.clone(),
            seats: None,
        };
        let tls = tls::webhook(&certificate)?;
        component
            .shutdown
            .servers
            .spawn(serve_tls(listener, tls, settings, router));
        component.serving();
        tracing::info!(port = ports::INJECTOR_WEBHOOK, "answering the API server");
        Ok(())
    }

    /// Looks after Secrets while `leader` says that this replica is the one; what it finds then.
    fn look_after(
        &self,
        bootstraps: Bootstraps,
        leader: watch::Receiver<bool>,
    ) -> watch::Receiver<Option<Count>> {
        let (counted, count) = watch::channel(None);
        let seen = upkeep::Seen::default();
        self.component.status.describe({
            let (seen, validity) = (seen.clone(), self.args.bootstrap_certificate_validity);
            move |page| page.bootstraps = seen.held(validity)
        });
        tokio::spawn(upkeep::keep(
            bootstraps,
            seen,
            self.args.bootstrap_grace,
            leader,
            counted,
            self.component.shutdown.stop.clone(),
        ));
        count
    }
}

/// Keeps the settings in step with what the cluster can do, until `stop`.
async fn follow_version(
    client: Client,
    args: Args,
    settings: Arc<ArcSwapOption<InjectionSettings>>,
    known: Condition,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let wait = match start_order(&client, args.native_sidecar).await {
            Ok(order) => {
                if settings
                    .load()
                    .as_ref()
                    .is_none_or(|settings| settings.start_order != order)
                {
                    tracing::info!(?order, "sidecars are started in this order");
                    settings.store(Some(Arc::new(args.settings(order))));
                }
                known.set_ready();
                backoff.reset();
                jittered(VERSION_PERIOD, 0.2)
            }
            Err(error) => {
                let error = format!("{error:#}");
                if settings.load().is_none() {
                    known.set_not_ready(format!("the version of Kubernetes is not known: {error}"));
                }
                tracing::warn!(error, "asking Kubernetes for its version failed");
                backoff.next_wait()
            }
        };
        tokio::select! { () = tokio::time::sleep(wait) => {}, () = stop.cancelled() => return }
    }
}

async fn start_order(client: &Client, wanted: NativeSidecar) -> Result<StartOrder> {
    if wanted == NativeSidecar::Always {
        return Ok(StartOrder::NativeSidecar);
    }
    chosen(wanted, &within(CALL, client.apiserver_version()).await?)
}

/// The order that is `wanted`, in a cluster of this version.
fn chosen(wanted: NativeSidecar, version: &Info) -> Result<StartOrder> {
    // Some providers write `29+`.
    let number = |text: &str| {
        let digits = text
            .split(|each: char| !each.is_ascii_digit())
            .next()
            .unwrap_or_default();
        digits
            .parse::<u32>()
            .with_context(|| format!("{text:?} is not a version"))
    };
    let (major, minor) = (number(&version.major)?, number(&version.minor)?);
    Ok(match wanted {
        NativeSidecar::Always => StartOrder::NativeSidecar,
        NativeSidecar::Never => StartOrder::Container {
            sleep_hook: (major, minor) >= (1, 30),
        },
        NativeSidecar::Auto => StartOrder::of_version(major, minor),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_follows_the_version_and_the_flag() {
        let container = |sleep_hook| StartOrder::Container { sleep_hook };
        let native = StartOrder::NativeSidecar;
        for (wanted, major, minor, order) in [
            (NativeSidecar::Auto, "1", "28", container(false)),
            (NativeSidecar::Auto, "1", "28+", container(false)),
            (NativeSidecar::Auto, "1", "29+", native),
            (NativeSidecar::Auto, "1", "36", native),
            (NativeSidecar::Auto, "2", "0", native),
            (NativeSidecar::Always, "1", "27", native),
            (NativeSidecar::Never, "1", "29", container(false)),
            (NativeSidecar::Never, "1", "30-gke.1", container(true)),
            (NativeSidecar::Never, "2", "0", container(true)),
        ] {
            let info = Info {
                major: major.to_owned(),
                minor: minor.to_owned(),
                ..Info::default()
            };
            let found = chosen(wanted, &info).unwrap();
            assert_eq!(found, order, "{wanted:?} in {major}.{minor}");
        }
        let nameless = chosen(NativeSidecar::Auto, &Info::default()).unwrap_err();
        assert!(nameless.to_string().contains("is not a version"), "{nameless}");
    }
}
