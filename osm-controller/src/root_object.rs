//! The MeshRootCertificate of the configured certificate provider: made if MeshConfig asks for it and there is none.
//!
//! Invariant: it changes nothing of what is trusted and what signs, it only says it; two replicas that do this at once
//! make one object.

use std::time::Duration;

use kube::{Api, Client, api::PostParams};
use osm_core::{
    api::{MeshRootCertificate, mesh_root_certificate::MeshRootCertificateSpec, names},
    certificate::rotation::{Home, Role},
    facts::mesh_config::ControlSettings,
};
use osm_runtime::{
    CancellationToken,
    backoff::Backoff,
    client::{CALL, within},
    roots::Standing,
};
use tokio::sync::watch;

/// Makes the object when it is wanted and missing, until `stop`.
pub async fn ensure(
    client: Client,
    home: Home,
    mut control: watch::Receiver<ControlSettings>,
    mut standing: watch::Receiver<Standing>,
    stop: CancellationToken,
) {
    let run = async {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let wanted = control.borrow_and_update().describe_root;
            let missing = {
                let standing = standing.borrow_and_update();
                standing.plan.signs.object.is_none() && standing.problem.is_none()
            };
            let failed = wanted && missing && !create(&client, &home).await;
            let again = async {
                match failed {
                    true => tokio::time::sleep(backoff.next_wait()).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = control.changed() => if changed.is_err() { return },
                changed = standing.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    };
    tokio::select! { () = run => {}, () = stop.cancelled() => {} }
}

/// Whether the object is there now.
async fn create(client: &Client, home: &Home) -> bool {
    let Some(provider) = home.configured.to_provider(&home.namespace) else {
        tracing::warn!(
            "the Vault token is a flag: no MeshRootCertificate can say where it is, and none is made"
        );
        return true;
    };
    let spec = MeshRootCertificateSpec {
        trust_domain: home.trust_domain.to_string(),
        role: Role::Active,
        spiffe_enabled: false,
        provider,
    };
    let object = MeshRootCertificate::new(names::MESH_ROOT_CERTIFICATE, spec);
    let api = Api::<MeshRootCertificate>::namespaced(client.clone(), &home.namespace);
    match within(CALL, api.create(&PostParams::default(), &object)).await {
        Ok(_) => {
            tracing::info!(
                name = names::MESH_ROOT_CERTIFICATE,
                "made the object of the root in use"
            );
            true
        }
        Err(error) if error.is_conflict() => true,
        Err(error) => {
            tracing::warn!(%error, "the MeshRootCertificate of the root in use was not made; trying again");
            false
        }
    }
}
