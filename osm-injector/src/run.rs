//! The process: starts everything, in an order in which nothing waits for what comes later, and leaves gently.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::ObjectReference};
use kube::Client;
use osm_core::{
    api::{names, ports},
    certificate::{
        Profile, SERVER_LIFETIME,
        rotation::{Home, Objects, progress::Count},
    },
    injection::{Settings as InjectionSettings, StartOrder},
};
use osm_runtime::{
    CancellationToken,
    admin::{Admin, Version},
    backoff::{Backoff, jittered},
    client::{self, CALL, within},
    event::{Events, News, Severity},
    health::{Condition, Health},
    issuer::{Issuer, LeafRequest},
    lease::{Election, campaign},
    log::Handle,
    metrics::Metrics,
    renewal,
    roots::{self, Delay, Keeper, Setting},
    serve::{Limits, ServeMetrics, Settings, any_address, serve_tls},
    shutdown::{Shutdown, Timing},
    status::Status,
    tls::{self, ServerCertificate, TlsError},
    watch::WatchMetrics,
    webhook::{
        bundle,
        review::{self, ReviewMetrics},
    },
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use crate::{
    args::{Args, NativeSidecar},
    bootstrap::{BootstrapMetrics, Bootstraps, Owner},
    config::Config,
    membership::Memberships,
    upkeep,
    webhook::Webhook,
};

/// The field manager of the webhook's CA bundle.
const MANAGER: &str = "osm-injector-ca-bundle";
/// The Lease of what only one replica should do.
const LEASE: &str = "osm-injector";
/// The webhook's path, the original's.
const PATH: &str = "/mutate-pod-creation";
/// Most bytes of a review: a pod of 1.5 MiB, escaped, and some more.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// How often the cluster is asked for its version: it may be upgraded.
const VERSION_PERIOD: Duration = Duration::from_secs(600);

fn version() -> Version {
    Version {
        version: concat!("v", env!("CARGO_PKG_VERSION")),
        git_commit: option_env!("OSM_GIT_COMMIT").unwrap_or("unknown"),
        build_date: option_env!("OSM_BUILD_DATE").unwrap_or("unknown"),
    }
}

/// Runs the injector until it is told to leave.
///
/// # Errors
/// When it cannot start: an argument makes no sense, an address is taken, there is no cluster.
pub async fn run(args: Args, log: Handle) -> Result<()> {
    args.check()?;
    let (health, metrics, shutdown) = (Health::new(), Metrics::new(), Shutdown::new());
    let bind_address = args.bind_address.unwrap_or_else(|| any_address(&args.pod_ip));
    let address = |port| SocketAddr::new(bind_address, port);

    // Probes first: a slow start is not a dead process.
    let serve_metrics = ServeMetrics::register(&metrics);
    let status = Status::new(names::INJECTOR, version().version, &args.pod_name, &health);
    let admin = Admin {
        health: health.clone(),
        metrics: metrics.clone(),
        version: version(),
        more: status.clone().router(),
    };
    let (_, admin) = admin
        .spawn(
            address(ports::ADMIN),
            serve_metrics.clone(),
            shutdown.stop.clone(),
        )
        .with_context(|| format!("listening on port {} (health and metrics)", ports::ADMIN))?;
    let listener = TcpListener::bind(address(ports::INJECTOR_WEBHOOK))
        .await
        .with_context(|| format!("listening on port {} (webhook)", ports::INJECTOR_WEBHOOK))?;
    // Registered before the first probe can find the process ready.
    let serving = health.condition("listeners");
    serving.set_not_ready("there is no root certificate yet");

    let agent = concat!("osm-injector/", env!("CARGO_PKG_VERSION"));
    let client = client::connect(agent, args.kubeconfig.clone()).await?;
    let watch_metrics = WatchMetrics::register(&metrics);
    status.follow_watches(&watch_metrics);
    let events = Events::start(
        client.clone(),
        names::INJECTOR,
        &args.pod_name,
        &metrics,
        shutdown.stop.clone(),
    );
    let configured = args.provider()?;
    let home = Home {
        namespace: args.osm_namespace.clone(),
        trust_domain: args.trust_domain.clone(),
        configured: configured.source(),
    };
    let setting = Setting {
        home: home.clone(),
        configured,
        labels: args.labels(),
        authorities: args.provider.authorities(),
    };
    let (known, objects) = watch::channel(None);
    let synced = health.condition("meshrootcertificates");
    tokio::spawn(roots::follow(
        client.clone(),
        home,
        known,
        synced,
        watch_metrics.clone(),
        shutdown.stop.clone(),
    ));
    let starting = Starting {
        memberships: Memberships::new(client.clone()),
        config: Config::default(),
        settings: Arc::default(),
        args: args.clone(),
        client,
        health: health.clone(),
        shutdown: shutdown.clone(),
        events,
        status,
        setting,
        objects,
        serve_metrics,
        watch_metrics,
        metrics: metrics.clone(),
        bootstrap_metrics: BootstrapMetrics::register(&metrics),
        review_metrics: ReviewMetrics::register(&metrics),
    };
    starting.watch(log);
    let (failed, failure) = oneshot::channel::<()>();
    tokio::spawn(async move {
        if let Err(error) = Box::pin(starting.serve(listener, serving)).await {
            tracing::error!(error = format!("{error:#}"), "cannot serve");
            let _ = failed.send(());
        } else {
            std::future::pending::<()>().await;
        }
    });

    let timing = Timing {
        delay: args.shutdown_delay,
        ..Timing::default()
    };
    let failure = async {
        if failure.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    shutdown.run(&health, timing, failure).await?;
    // The admin endpoint is the last to go; it was told to stop with everything else.
    let _ = tokio::task::spawn_blocking(move || admin.join()).await;
    Ok(())
}

struct Starting {
    args: Args,
    client: Client,
    health: Health,
    shutdown: Shutdown,
    events: Events,
    setting: Setting,
    objects: watch::Receiver<Option<Objects>>,
    metrics: Metrics,
    memberships: Memberships,
    config: Config,
    settings: Arc<ArcSwapOption<InjectionSettings>>,
    status: Status,
    serve_metrics: ServeMetrics,
    watch_metrics: WatchMetrics,
    bootstrap_metrics: BootstrapMetrics,
    review_metrics: ReviewMetrics,
}

impl Starting {
    /// Starts learning what the verdicts depend on.
    fn watch(&self, log: Handle) {
        let (client, metrics, stop) = (&self.client, &self.watch_metrics, &self.shutdown.stop);
        tokio::spawn({
            let (memberships, mesh) = (self.memberships.clone(), self.args.mesh_name.clone());
            let synced = self.health.condition("namespaces");
            let (client, metrics, stop) = (client.clone(), metrics.clone(), stop.clone());
            async move { memberships.keep(client, &mesh, synced, metrics, stop).await }
        });
        tokio::spawn({
            let (config, args) = (self.config.clone(), self.args.clone());
            let synced = self.health.condition("mesh-config");
            let (client, metrics, stop) = (client.clone(), metrics.clone(), stop.clone());
            async move {
                let watch = Config::watch(client, &args.osm_namespace, &args.osm_config_name);
                config.keep(watch, log, synced, metrics, stop).await
            }
        });
        let known = self.health.condition("kubernetes-version");
        tokio::spawn(follow_version(
            client.clone(),
            self.args.clone(),
            self.settings.clone(),
            known,
            stop.clone(),
        ));
    }

    /// Everything that needs certificates, once there are any.
    async fn serve(self, listener: TcpListener, serving: Condition) -> Result<()> {
        let (args, shutdown) = (&self.args, &self.shutdown);
        let Some((issuer, keeper)) = self.open_issuer(&serving).await else {
            return Ok(());
        };
        self.status.follow_roots(issuer.watch_roots());
        issuer.register_roots(&self.metrics);
        let certificate = ServerCertificate::new();
        let profile = Profile::webhook(names::INJECTOR, &args.osm_namespace);
        let condition = self.health.condition("webhook-certificate");
        condition.set_not_ready("no certificate has been issued yet");
        tokio::spawn(renewal::keep(
            issuer.clone(),
            LeafRequest::new(profile, SERVER_LIFETIME),
            condition,
            shutdown.stop.clone(),
            {
                let (certificate, status) = (certificate.clone(), self.status.clone());
                move |leaf| {
                    certificate.set(leaf)?;
                    status.certificate("webhook-certificate", leaf.validity());
                    Ok::<(), TlsError>(())
                }
            },
        ));
        tokio::spawn(renewal::guard_root(
            issuer.clone(),
            self.health.condition("root"),
            shutdown.stop.clone(),
            {
                let (events, pod) = (self.events.clone(), self.own_pod());
                move |message| {
                    tracing::error!(message, "the root certificate");
                    warn(&events, &pod, "RootCertificateProblem", message);
                }
            },
        ));
        tokio::spawn(renewal::report_trouble(issuer.clone(), shutdown.stop.clone(), {
            let (events, pod) = (self.events.clone(), self.own_pod());
            move |trouble| warn(&events, &pod, trouble.reason, &trouble.message)
        }));
        tokio::spawn({
            let (client, name) = (self.client.clone(), args.webhook_config_name.clone());
            let (roots, metrics) = (issuer.watch_roots(), self.watch_metrics.clone());
            let stop = shutdown.stop.clone();
            async move {
                bundle::keep::<MutatingWebhookConfiguration>(client, &name, MANAGER, roots, metrics, stop)
                    .await
            }
        });

        let owner = Owner {
            mesh_name: args.mesh_name.clone(),
            version: args.osm_version.clone(),
            trust_domain: args.trust_domain.clone(),
            validity: args.bootstrap_certificate_validity,
        };
        let bootstraps = Bootstraps::new(self.client.clone(), issuer, owner, self.bootstrap_metrics.clone());
        let counted = self.look_after(bootstraps.clone());
        self.follow_objects(keeper, counted);

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
            webhook.clone().judge(request)
        });
        let settings = Settings {
            name: "webhook",
            limits: Limits::webhook(),
            metrics: self.serve_metrics.clone(),
            drain: shutdown.drain.clone(),
        };
        let tls = tls::webhook(&certificate)?;
        shutdown.servers.spawn(serve_tls(listener, tls, settings, router));
        serving.set_ready();
        tracing::info!(port = ports::INJECTOR_WEBHOOK, "answering the API server");
        Ok(())
    }

    /// Keeps the roots in step with the MeshRootCertificates, and reports in their status.
    fn follow_objects(&self, keeper: Keeper, counted: watch::Receiver<Option<Count>>) {
        let reporter = roots::Reporter {
            component: names::INJECTOR,
            replica: self.args.pod_name.clone(),
            namespace: self.args.osm_namespace.clone(),
        };
        let (client, objects, standing) = (self.client.clone(), self.objects.clone(), keeper.standing());
        let stop = self.shutdown.stop.clone();
        tokio::spawn(async move {
            let usage = || {
                let (proxies, secrets) = (None, *counted.borrow());
                std::future::ready(roots::Usage { proxies, secrets })
            };
            roots::report(client, reporter, objects, standing, usage, stop).await;
        });
        tokio::spawn(keeper.keep(self.shutdown.stop.clone()));
    }

    /// Takes part in the election of the replica that looks after Secrets; what it finds while it is the one.
    fn look_after(&self, bootstraps: Bootstraps) -> watch::Receiver<Option<Count>> {
        let (counted, count) = watch::channel(None);
        let (lead, leader) = watch::channel(false);
        self.status.follow_leader(leader.clone());
        self.shutdown.tasks.spawn({
            let (client, namespace) = (self.client.clone(), self.args.osm_namespace.clone());
            let election = Election::new(LEASE, &self.args.pod_name);
            let stop = self.shutdown.stop.clone();
            async move { campaign(client, &namespace, election, lead, stop).await }
        });
        let seen = upkeep::Seen::default();
        self.status.describe({
            let (seen, validity) = (seen.clone(), self.args.bootstrap_certificate_validity);
            move |page| page.bootstraps = seen.held(validity)
        });
        tokio::spawn(upkeep::keep(
            bootstraps,
            seen,
            self.args.bootstrap_grace,
            leader,
            counted,
            self.shutdown.stop.clone(),
        ));
        count
    }

    /// Opens the certificate provider, for as long as it takes; `None` when it is time to leave before that. A root
    /// that is not fit for use is reported and looked at again: the operator may repair it.
    async fn open_issuer(&self, serving: &Condition) -> Option<(Issuer, Keeper)> {
        let pod = self.own_pod();
        let waiting = |delay: Delay| {
            serving.set_not_ready(delay.to_string());
            if let Delay::Failed(error) = delay {
                tracing::error!(%error, "there is no root to use yet");
                warn(&self.events, &pod, error.reason(), &error.to_string());
            }
        };
        let (setting, objects) = (self.setting.clone(), self.objects.clone());
        tokio::select! {
            opened = roots::open_at_last(self.client.clone(), setting, objects, waiting) => Some(opened),
            () = self.shutdown.stop.cancelled() => None,
        }
    }

    fn own_pod(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(self.args.pod_name.clone()),
            namespace: Some(self.args.osm_namespace.clone()),
            ..Default::default()
        }
    }
}

fn warn(events: &Events, object: &ObjectReference, reason: &'static str, note: &str) {
    events.report(News {
        object: object.clone(),
        severity: Severity::Warning,
        reason,
        note: note.to_owned(),
    });
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
    let version = within(CALL, client.apiserver_version()).await?;
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
        NativeSidecar::Never => StartOrder::Container {
            sleep_hook: (major, minor) >= (1, 30),
        },
        _ => StartOrder::of_version(major, minor),
    })
}
