//! The real Envoy takes every resource of every golden case, and counts no use of a deprecated field.

use osm_core::ir::ServiceCertificate;

use crate::{
    cases::{self, Sidecar},
    envoy::{self, Envoy, Files, Ports},
    resources::{Credentials, Resources},
};

/// A root and a certificate of it. Real ones, because Envoy reads them.
fn credentials() -> Credentials {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a.shop.cluster.local".into()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let chain: std::sync::Arc<str> = certificate.pem().into();
    Credentials {
        roots: chain.clone(),
        certificate: ServiceCertificate {
            chain,
            key: key.serialize_pem().into(),
        },
    }
}

fn accepts(sidecar: &Sidecar) {
    let resources = Resources::of(sidecar, &credentials());
    let files = Files::new(&resources, Ports::Any);
    envoy::validate(&files).unwrap_or_else(|log| panic!("{}: not valid:\n{log}", sidecar.name));

    let mut envoy = Envoy::start(&files, None);
    envoy.wait_until("answer of CDS and LDS", |envoy| {
        let attempts = |it| envoy.statistic(&format!("{it}.update_attempt"));
        attempts("cluster_manager.cds") > 0 && attempts("listener_manager.lds") > 0
    });
    envoy.wait_until("end of warming", |envoy| {
        let warming = [
            "cluster_manager.warming_clusters",
            "listener_manager.total_listeners_warming",
        ];
        warming.iter().all(|gauge| envoy.statistic(gauge) == 0)
            && envoy.statistic("server.state") == 0
            && envoy.statistic("listener_manager.total_listeners_active") == resources.listeners.len() as u64
    });
    let rejected = envoy.statistics(|name| name.ends_with("update_rejected"));
    let refused: Vec<_> = rejected.into_iter().filter(|(_, count)| *count > 0).collect();
    assert!(
        refused.is_empty(),
        "{}: {refused:?}\n{}",
        sidecar.name,
        envoy.log()
    );
    assert_eq!(
        envoy.statistic("cluster_manager.active_clusters"),
        resources.clusters.len() as u64
    );
    let routes = envoy.statistics(|name| name.contains(".rds.") && name.ends_with("config_reload"));
    assert_eq!(
        routes.iter().map(|(_, loads)| loads).sum::<u64>(),
        resources.routes.len() as u64,
        "{routes:?}"
    );
    assert_eq!(
        envoy.statistic("runtime.deprecated_feature_use"),
        0,
        "{}",
        envoy.log()
    );
    assert_eq!(envoy.log(), "", "{}: warnings", sidecar.name);
}

#[test]
fn envoy_accepts_every_case() {
    for sidecar in cases::all() {
        accepts(&sidecar);
    }
}

/// The check above can fail: it is not blind to what Envoy rejects.
#[test]
fn envoy_rejects_what_is_wrong() {
    let mut sidecar = cases::all()
        .into_iter()
        .find(|it| it.name == "tcp-client")
        .unwrap();
    let chains = &mut sidecar.outbound.as_mut().unwrap().chains;
    chains.push(osm_core::ir::OutboundChain {
        name: "again".into(),
        ..chains[0].clone()
    });
    let files = Files::new(&Resources::of(&sidecar, &credentials()), Ports::Any);
    let log = envoy::validate(&files).expect_err("two chains match the same connections");
    assert!(log.contains("again"), "{log}");

    let mut envoy = Envoy::start(&files, None);
    envoy.wait_until("rejection", |envoy| {
        envoy.statistic("listener_manager.lds.update_rejected") > 0
    });
}
