//! The process: starts everything, in an order in which nothing waits for what comes later, and leaves gently.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::ObjectReference,
};
use kube::Client;
use osm_core::{
    api::{names, ports},
    certificate::{
        Profile, SERVER_LIFETIME,
        rotation::{Home, Objects},
    },
    mesh::{Event, Options},
};
use osm_runtime::{
    CancellationToken,
    admin::{self, Admin, Version},
    client,
    event::{Events, News, Severity},
    health::Health,
    issuer::{Issuer, LeafRequest},
    lease::{Election, campaign},
    log::Handle,
    metrics::Metrics,
    renewal,
    roots::{self, Delay, Keeper, Setting},
    serve::{Limits, ServeMetrics, Settings, any_address, serve_mutual_tls, serve_tls},
    shutdown::{Shutdown, Timing},
    status::Status,
    tls::{self, ClientRoots, ServerCertificate, TlsError},
    watch::WatchMetrics,
    webhook::{bundle, review::ReviewMetrics},
};
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    ads::{self, Ads, AdsMetrics},
    args::Args,
    certificates::{CertificateMetrics, Certificates},
    connections::{self, Connections},
    mesh::{EngineMetrics, Input, Inputs, Mesh, start, watch_all},
    pages::{Pages, smi_versions},
    preset,
    report::{self, Reporter},
    root_object,
    uninjected::{Findings, Search},
    usage, validator,
};

/// The field manager of the webhook's CA bundle.
const MANAGER: &str = "osm-controller-ca-bundle";
/// The Lease of what only one replica should write.
const LEASE: &str = "osm-controller";
/// Problems with objects waiting to be reported.
const PROBLEMS: usize = 64;

fn version() -> Version {
    Version {
        version: concat!("v", env!("CARGO_PKG_VERSION")),
        git_commit: option_env!("OSM_GIT_COMMIT").unwrap_or("unknown"),
        build_date: option_env!("OSM_BUILD_DATE").unwrap_or("unknown"),
    }
}

/// Runs the controller until it is told to leave.
///
/// # Errors
/// When it cannot start: an address is taken, there is no cluster.
pub async fn run(args: Args, log: Handle) -> Result<()> {
    let (health, metrics, shutdown) = (Health::new(), Metrics::new(), Shutdown::new());
    let bind_address = args.bind_address.unwrap_or_else(|| any_address(&args.pod_ip));
    let address = |port| SocketAddr::new(bind_address, port);
    register_version(&metrics);

    // Probes first: a slow start is not a dead process.
    let serve_metrics = ServeMetrics::register(&metrics);
    let status = Status::new(names::CONTROLLER, version().version, &args.pod_name, &health);
    let admin = Admin {
        health: health.clone(),
        metrics: metrics.clone(),
        version: version(),
        more: smi_versions().merge(status.clone().router()),
    };
    let (_, admin) = admin
        .spawn(
            address(ports::ADMIN),
            serve_metrics.clone(),
            shutdown.stop.clone(),
        )
        .with_context(|| format!("listening on port {} (health and metrics)", ports::ADMIN))?;
    let bind = async |port, what| {
        TcpListener::bind(address(port))
            .await
            .with_context(|| format!("listening on port {port} ({what})"))
    };
    let ads_listener = bind(ports::ADS, "discovery service").await?;
    let validator_listener = bind(ports::VALIDATOR_WEBHOOK, "validating webhook").await?;

    let agent = concat!("osm-controller/", env!("CARGO_PKG_VERSION"));
    let client = client::connect(agent, args.kubeconfig.clone()).await?;
    let watch_metrics = WatchMetrics::register(&metrics);
    status.follow_watches(&watch_metrics);
    let events = Events::start(
        client.clone(),
        names::CONTROLLER,
        &args.pod_name,
        &metrics,
        shutdown.stop.clone(),
    );
    let reporter = Reporter::start(client.clone(), events.clone());

    // The mesh.
    let mesh = Mesh::new();
    let options = Options {
        mesh_name: args.mesh_name.as_str().into(),
        osm_namespace: args.osm_namespace.as_str().into(),
        trust_domain: args.trust_domain.clone(),
    };
    let (problems, found) = mpsc::channel(PROBLEMS);
    let (inputs, _engine) = start(
        options,
        mesh.clone(),
        &health,
        EngineMetrics::register(&metrics),
        problems,
    )?;
    let config = (args.osm_namespace.as_str(), args.osm_config_name.as_str());
    watch_all(&client, config, &inputs, &health, &watch_metrics, &shutdown);
    tokio::spawn({
        let (client, args, stop) = (client.clone(), args.clone(), shutdown.stop.clone());
        async move { preset::ensure(client, &args, stop).await }
    });
    let (lead, leader) = watch::channel(false);
    shutdown.tasks.spawn({
        let (client, namespace, stop) = (client.clone(), args.osm_namespace.clone(), shutdown.stop.clone());
        let election = Election::new(LEASE, &args.pod_name);
        async move { campaign(client, &namespace, election, lead, stop).await }
    });
    status.follow_leader(leader.clone());
    tokio::spawn(report::problems(events.clone(), leader.clone(), found));
    let search = Search {
        client: client.clone(),
        mesh_name: args.mesh_name.clone(),
        osm_namespace: args.osm_namespace.clone(),
        events: events.clone(),
        metrics: watch_metrics.clone(),
        findings: Findings::register(&metrics),
    };
    let findings = search.findings.clone();
    status.describe({
        let findings = findings.clone();
        move |page| page.uninjected = findings.count().map(|count| count as u64)
    });
    tokio::spawn(search.keep(leader, shutdown.stop.clone()));
    tokio::spawn(follow_log_level(mesh.clone(), log));

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

    // Everything that needs certificates, once there are any.
    let starting = Starting {
        args: args.clone(),
        client,
        health: health.clone(),
        shutdown: shutdown.clone(),
        mesh,
        inputs,
        events,
        reporter,
        status,
        findings,
        setting,
        objects,
        serve_metrics,
        watch_metrics,
        metrics: metrics.clone(),
        ads_metrics: AdsMetrics::register(&metrics),
        certificate_metrics: CertificateMetrics::register(&metrics),
        review_metrics: ReviewMetrics::register(&metrics),
    };
    // Registered before the first probe can find the process ready.
    starting
        .health
        .condition("listeners")
        .set_not_ready("there is no root certificate yet");
    let (failed, failure) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        if let Err(error) = Box::pin(starting.serve(ads_listener, validator_listener)).await {
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
    mesh: Mesh,
    inputs: Inputs,
    events: Events,
    reporter: Reporter,
    status: Status,
    findings: Findings,
    setting: Setting,
    objects: watch::Receiver<Option<Objects>>,
    serve_metrics: ServeMetrics,
    watch_metrics: WatchMetrics,
    metrics: Metrics,
    ads_metrics: AdsMetrics,
    certificate_metrics: CertificateMetrics,
    review_metrics: ReviewMetrics,
}

impl Starting {
    async fn serve(self, ads_listener: TcpListener, validator_listener: TcpListener) -> Result<()> {
        let (args, shutdown) = (&self.args, &self.shutdown);
        let Some((issuer, keeper)) = self.open_issuer().await else {
            return Ok(());
        };
        issuer.register_roots(&self.metrics);
        let (ads_certificate, validator_certificate) = (ServerCertificate::new(), ServerCertificate::new());
        let clients = ClientRoots::new();
        clients.set(&issuer.roots())?;
        self.status.follow_roots(issuer.watch_roots());
        let keep = |name, profile, certificate: ServerCertificate| {
            let request = LeafRequest::new(profile, SERVER_LIFETIME);
            let condition = self.health.condition(name);
            condition.set_not_ready("no certificate has been issued yet");
            let status = self.status.clone();
            tokio::spawn(renewal::keep(
                issuer.clone(),
                request,
                condition,
                shutdown.stop.clone(),
                move |leaf| {
                    certificate.set(leaf)?;
                    status.certificate(name, leaf.validity());
                    Ok::<(), TlsError>(())
                },
            ));
        };
        keep(
            "ads-certificate",
            Profile::ads(&args.trust_domain),
            ads_certificate.clone(),
        );
        let webhook = Profile::webhook(names::VALIDATOR, &args.osm_namespace);
        keep("validator-certificate", webhook, validator_certificate.clone());
        tokio::spawn(follow_roots(
            issuer.clone(),
            clients.clone(),
            self.inputs.clone(),
            shutdown.stop.clone(),
        ));
        let root = self.health.condition("root");
        tokio::spawn(renewal::guard_root(
            issuer.clone(),
            root,
            shutdown.stop.clone(),
            {
                let (events, pod) = (self.events.clone(), self.own_pod());
                move |message| report_on(&events, &pod, "RootCertificateProblem", message)
            },
        ));
        tokio::spawn(renewal::report_trouble(issuer.clone(), shutdown.stop.clone(), {
            let (events, pod) = (self.events.clone(), self.own_pod());
            move |trouble| report_on(&events, &pod, trouble.reason, &trouble.message)
        }));

        let certificates = Certificates::new(
            issuer.clone(),
            args.trust_domain.clone(),
            self.inputs.clone(),
            self.mesh.control(),
            self.certificate_metrics.clone(),
        );
        let cores = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
        let settings = ads::Settings {
            trust_domain: args.trust_domain.clone(),
            new_streams_per_second: args.new_streams_per_second.saturating_mul(cores),
            ..ads::Settings::default()
        };
        let ads = Ads::new(
            settings,
            self.mesh.clone(),
            certificates.clone(),
            self.reporter.clone(),
            self.ads_metrics.clone(),
        );
        let limits = Limits {
            max_age: (!args.max_connection_age.is_zero()).then_some(args.max_connection_age),
            ..Limits::ads()
        };
        let server = |name, limits| Settings {
            name,
            limits,
            metrics: self.serve_metrics.clone(),
            drain: shutdown.drain.clone(),
        };
        let ads_tls = tls::ads(&ads_certificate, &clients)?;
        shutdown.servers.spawn(serve_mutual_tls(
            ads_listener,
            ads_tls,
            clients.clone(),
            server("ads", limits),
            ads.clone(),
        ));
        self.follow_objects(keeper, issuer.clone(), &ads);
        let rules = validator::Rules {
            targets: args.validate_traffic_target,
            roots: self.objects.clone(),
            home: self.setting.home.clone(),
        };
        let pages = validator::pages(rules, self.review_metrics.clone());
        let validator_tls = tls::webhook(&validator_certificate)?;
        let settings = server("validator", Limits::webhook());
        shutdown
            .servers
            .spawn(serve_tls(validator_listener, validator_tls, settings, pages));
        if !args.validator_webhook_config.is_empty() {
            let (client, name, metrics) = (
                self.client.clone(),
                args.validator_webhook_config.clone(),
                self.watch_metrics.clone(),
            );
            let (roots, stop) = (issuer.watch_roots(), shutdown.stop.clone());
            tokio::spawn(async move {
                bundle::keep::<ValidatingWebhookConfiguration>(client, &name, MANAGER, roots, metrics, stop)
                    .await;
            });
        }
        let (switch, enabled) = watch::channel(false);
        tokio::spawn(follow_debug_switch(self.mesh.clone(), switch));
        connections::describe(&self.status, &self.mesh, &ads, &certificates);
        let connections = Connections {
            pod: args.pod_name.clone(),
            ads: ads.clone(),
            certificates: certificates.clone(),
        };
        let debug = Pages {
            mesh: self.mesh.clone(),
            ads,
            certificates,
        };
        tokio::spawn(admin::loopback(
            connections.router().merge(self.findings.router()),
            debug.router(),
            enabled,
            self.serve_metrics.clone(),
            shutdown.stop.clone(),
        ));
        self.health.condition("listeners").set_ready();
        tracing::info!(mesh = args.mesh_name, "serving");
        Ok(())
    }

    /// Keeps the roots in step with the MeshRootCertificates, and reports in their status.
    fn follow_objects(&self, keeper: Keeper, issuer: Issuer, ads: &Ads) {
        let reporter = roots::Reporter {
            component: names::CONTROLLER,
            replica: self.args.pod_name.clone(),
            namespace: self.args.osm_namespace.clone(),
        };
        let (registry, mesh) = (ads.registry().clone(), self.mesh.clone());
        let (client, objects, standing) = (self.client.clone(), self.objects.clone(), keeper.standing());
        let stop = self.shutdown.stop.clone();
        tokio::spawn(async move {
            let observe = || usage::observe(registry.clone(), mesh.clone(), issuer.roots());
            roots::report(client, reporter, objects, standing, observe, stop).await;
        });
        tokio::spawn(root_object::ensure(
            self.client.clone(),
            self.setting.home.clone(),
            self.mesh.control(),
            keeper.standing(),
            self.shutdown.stop.clone(),
        ));
        tokio::spawn(keeper.keep(self.shutdown.stop.clone()));
    }

    /// Opens the source of certificates, for as long as it takes; `None` when it is time to leave.
    async fn open_issuer(&self) -> Option<(Issuer, Keeper)> {
        let condition = self.health.condition("listeners");
        let pod = self.own_pod();
        let waiting = |delay: Delay| {
            condition.set_not_ready(delay.to_string());
            if let Delay::Failed(error) = delay {
                tracing::error!(%error, "there is no root to use yet");
                report_on(&self.events, &pod, error.reason(), &error.to_string());
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
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(self.args.pod_name.clone()),
            namespace: Some(self.args.osm_namespace.clone()),
            ..ObjectReference::default()
        }
    }
}

fn report_on(events: &Events, object: &ObjectReference, reason: &'static str, note: &str) {
    events.report(News {
        object: object.clone(),
        severity: Severity::Warning,
        reason,
        note: note.to_owned(),
    });
}

/// Tells the engine and the TLS server about the roots, now and whenever they change.
async fn follow_roots(issuer: Issuer, clients: ClientRoots, inputs: Inputs, stop: CancellationToken) {
    let mut roots = issuer.watch_roots();
    loop {
        let bundle = roots.borrow_and_update().clone();
        if let Err(error) = clients.set(&bundle) {
            tracing::error!(%error, "the roots cannot be used to verify sidecars");
        }
        if inputs
            .send(Input::Event(Event::Roots(bundle.pem().clone())))
            .await
            .is_err()
        {
            return;
        }
        tokio::select! {
            changed = roots.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Logs as MeshConfig says, once there is one.
async fn follow_log_level(mesh: Mesh, log: Handle) {
    let mut control = mesh.control();
    while control.changed().await.is_ok() {
        let level = control.borrow_and_update().log_level.clone();
        if let Ok(verbosity) = level.parse() {
            log.set(verbosity);
        }
    }
}

async fn follow_debug_switch(mesh: Mesh, switch: watch::Sender<bool>) {
    let mut control = mesh.control();
    loop {
        let on = control.borrow_and_update().debug_server;
        switch.send_if_modified(|now| std::mem::replace(now, on) != on);
        if control.changed().await.is_err() {
            return;
        }
    }
}

fn register_version(metrics: &Metrics) {
    let info = Family::<Vec<(String, String)>, Gauge>::default();
    let version = version();
    let labels = [
        ("version", version.version),
        ("build_date", version.build_date),
        ("git_commit", version.git_commit),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    info.get_or_create(&labels.to_vec()).set(1);
    metrics.register(|registry| registry.register("osm_version_info", "The build", info));
}
