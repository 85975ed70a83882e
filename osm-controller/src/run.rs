//! The process: starts everything, in an order in which nothing waits for what comes later, and leaves gently.

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use osm_core::{
    api::{names, ports},
    certificate::{Profile, rotation::Objects},
    mesh::{Event, Options},
};
use osm_runtime::{
    CancellationToken, admin,
    component::{Component, Start},
    issuer::Issuer,
    log::Handle,
    roots::{Keeper, Setting},
    serve::{Limits, Settings, serve_mutual_tls, serve_tls},
    tls::{self, ClientRoots},
    webhook::review::ReviewMetrics,
};
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

/// Problems with objects waiting to be reported.
const PROBLEMS: usize = 64;

/// Runs the controller until it is told to leave.
///
/// # Errors
/// When it cannot start: an address is taken, there is no cluster.
pub async fn run(args: Args, log: Handle) -> Result<()> {
    let flags = &args.component;
    let begun = Start::new(names::CONTROLLER, &args.pod_name, flags, smi_versions())?;
    let ads_listener = begun.listen(ports::ADS, "discovery service").await?;
    let validator_listener = begun
        .listen(ports::VALIDATOR_WEBHOOK, "validating webhook")
        .await?;
    let component = begun.connect().await?;
    let (client, metrics, stop) = (&component.client, &component.metrics, &component.shutdown.stop);
    let reporter = Reporter::start(client.clone(), component.events.clone());

    // The mesh.
    let mesh = Mesh::new();
    let options = Options {
        mesh_name: flags.mesh_name.as_str().into(),
        osm_namespace: flags.osm_namespace.as_str().into(),
        trust_domain: flags.trust_domain.clone(),
    };
    let (problems, found) = mpsc::channel(PROBLEMS);
    let (inputs, _engine) = start(
        options,
        mesh.clone(),
        &component.health,
        EngineMetrics::register(metrics),
        problems,
    )?;
    let config = (flags.osm_namespace.as_str(), flags.osm_config_name.as_str());
    watch_all(
        &component.watch_thread().await?,
        config,
        &inputs,
        &component.health,
        &component.watch_metrics,
        &component.shutdown,
    );
    tokio::spawn({
        let (client, flags, stop) = (client.clone(), flags.clone(), stop.clone());
        async move { preset::ensure(client, &flags, stop).await }
    });
    let leader = component.campaign();
    tokio::spawn(report::problems(component.events.clone(), leader.clone(), found));
    let search = Search {
        client: client.clone(),
        mesh_name: flags.mesh_name.clone(),
        osm_namespace: flags.osm_namespace.clone(),
        events: component.events.clone(),
        metrics: component.watch_metrics.clone(),
        findings: Findings::register(metrics),
    };
    let findings = search.findings.clone();
    component.status.describe({
        let findings = findings.clone();
        move |page| page.uninjected = findings.count().map(|count| count as u64)
    });
    tokio::spawn(search.keep(leader, stop.clone()));
    tokio::spawn(follow_log_level(mesh.clone(), log));

    #[cfg(feature = "sabotage")]
    if osm_core::sabotage::Fault::Busy.is_on() {
        // A tenth of a core, as much as the drill lets it request: more would take the cluster down with it.
        std::thread::spawn(|| {
            loop {
                let begun = std::time::Instant::now();
                while begun.elapsed().as_millis() < 10 {}
                std::thread::sleep(std::time::Duration::from_millis(90));
            }
        });
    }

    // Everything that needs certificates, once there are any.
    let setting = flags.setting()?;
    let objects = component.follow_roots(&setting);
    let starting = Starting {
        args: args.clone(),
        component: component.clone(),
        mesh,
        inputs,
        reporter,
        findings,
        setting,
        objects,
        ads_metrics: AdsMetrics::register(metrics),
        certificate_metrics: CertificateMetrics::register(metrics),
        review_metrics: ReviewMetrics::register(metrics),
    };
    component
        .run(starting.serve(ads_listener, validator_listener))
        .await?;
    Ok(())
}

struct Starting {
    args: Args,
    component: Component,
    mesh: Mesh,
    inputs: Inputs,
    reporter: Reporter,
    findings: Findings,
    setting: Setting,
    objects: watch::Receiver<Option<Objects>>,
    ads_metrics: AdsMetrics,
    certificate_metrics: CertificateMetrics,
    review_metrics: ReviewMetrics,
}

impl Starting {
    async fn serve(self, ads_listener: TcpListener, validator_listener: TcpListener) -> Result<()> {
        let (args, component) = (&self.args, &self.component);
        let (flags, shutdown) = (&args.component, &component.shutdown);
        let Some((issuer, keeper)) = component.open_roots(&self.setting, &self.objects).await else {
            return Ok(());
        };
        let clients = ClientRoots::new();
        clients.set(&issuer.roots())?;
        let ads_profile = Profile::ads(&flags.trust_domain);
        let ads_certificate = component.keep_certificate(&issuer, "ads-certificate", ads_profile);
        let webhook_profile = Profile::webhook(names::VALIDATOR, &flags.osm_namespace);
        let validator_certificate =
            component.keep_certificate(&issuer, "validator-certificate", webhook_profile);
        tokio::spawn(follow_roots(
            issuer.clone(),
            clients.clone(),
            self.inputs.clone(),
            shutdown.stop.clone(),
        ));
        component.guard_roots(&issuer);

        let certificates = Certificates::new(
            issuer.clone(),
            flags.trust_domain.clone(),
            self.inputs.clone(),
            self.mesh.control(),
            self.certificate_metrics.clone(),
        );
        let cores = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
        let settings = ads::Settings {
            trust_domain: flags.trust_domain.clone(),
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
        let max_age = (!args.max_connection_age.is_zero()).then_some(args.max_connection_age);
        #[cfg(feature = "sabotage")]
        let max_age = max_age.filter(|_| !osm_core::sabotage::Fault::EndlessConnections.is_on());
        #[cfg(feature = "sabotage")]
        let max_age = if osm_core::sabotage::Fault::ShortConnections.is_on() {
            Some(std::time::Duration::from_secs(5))
        } else {
            max_age
        };
        let limits = Limits {
            max_age,
            ..Limits::ads()
        };
        let server = |name, limits| Settings {
            name,
            limits,
            metrics: component.serve_metrics.clone(),
            drain: shutdown.drain.clone(),
            seats: None,
        };
        let ads_tls = tls::ads(&ads_certificate, &clients)?;
        shutdown.servers.spawn(serve_mutual_tls(
            ads_listener,
            ads_tls,
            clients.clone(),
            Settings {
                seats: Some(ads.seats()),
                ..server("ads", limits)
            },
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
            component.keep_bundle::<ValidatingWebhookConfiguration>(&issuer, &args.validator_webhook_config);
        }
        let (switch, enabled) = watch::channel(false);
        tokio::spawn(follow_debug_switch(self.mesh.clone(), switch));
        connections::describe(&component.status, &self.mesh, &ads, &certificates);
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
            component.serve_metrics.clone(),
            shutdown.stop.clone(),
        ));
        component.serving();
        tracing::info!(mesh = flags.mesh_name, "serving");
        Ok(())
    }

    /// Keeps the roots in step with the MeshRootCertificates, and reports in their status.
    fn follow_objects(&self, keeper: Keeper, issuer: Issuer, ads: &Ads) {
        let component = &self.component;
        tokio::spawn(root_object::ensure(
            component.client.clone(),
            self.setting.home.clone(),
            self.mesh.control(),
            keeper.standing(),
            component.shutdown.stop.clone(),
        ));
        let (registry, mesh) = (ads.registry().clone(), self.mesh.clone());
        component.keep_roots(keeper, &self.objects, move || {
            usage::observe(registry.clone(), mesh.clone(), issuer.roots())
        });
    }
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
