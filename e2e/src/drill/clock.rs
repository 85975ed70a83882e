//! Clocks that are wrong by an hour, and jump.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::bed::{self, BACKENDS, CLIENT, URL};
use super::certificates;
use super::connections;
use super::node::{self, PodProcess};
use super::scene::{COMPONENTS, SOON, Scene};
use crate::harness::eventually;
use crate::harness::mesh::NAMESPACE;
use crate::image::{catalog, import};
use crate::progress::Progress;

/// Where a replica's offset stands: a volume of its own, as its other files cannot be written.
const FOLDER: &str = "/clock";
const OFFSET: &str = "/clock/offset";
/// By how many seconds clocks are off, one jump after the other.
const JUMPS: [(&str, &str); 3] = [
    ("+3600", "an hour ahead"),
    ("-3600", "an hour behind"),
    ("+0", "right again"),
];

/// The clocks of one controller and of all injectors jump an hour ahead, two hours back, and to the right time. With
/// each, all service certificates are renewed and a pod is made anew; nodes with the right time take them all.
pub(super) async fn jumped_clocks(scene: &Scene) -> Result<()> {
    give_clocks(scene).await?;
    let outcome = Box::pin(jump(scene)).await;
    take_clocks(scene).await?;
    outcome
}

async fn jump(scene: &Scene) -> Result<()> {
    scene.all_served(SOON).await?;
    let (victim, proxies) = super::controllers::busiest(scene)?;
    let mut offsets = vec![victim.file(OFFSET)];
    offsets.extend(
        node::processes("osm-injector")?
            .iter()
            .map(|injector| injector.file(OFFSET)),
    );
    for (offset, meaning) in JUMPS {
        set(&offsets, offset)?;
        scene.fault();
        until_it_shows(&victim, offset.parse()?).await?;
        let work = async {
            certificates::renew_all(scene).await?;
            bed::retire(&scene.mesh, BACKENDS[0]).await?;
            bed::start_backend(&scene.mesh, BACKENDS[0]).await
        };
        let ((), answered) = Box::pin(connections::during(scene, work)).await?;
        scene.finding(
            format!("backends that answered them with clocks {meaning}"),
            answered.len(),
            BACKENDS.len(),
            answered.len() == BACKENDS.len(),
        );
        let client = bed::peer(&scene.mesh, CLIENT).await?;
        let answer = client.get(URL, &[]).await?;
        ensure!(answer.status == Some(200), "{answer:?}");
        let here = scene.attendance.of(&victim).len();
        scene.finding(
            format!("sidecars that stayed with the controller {meaning}"),
            format!("{here} of {}", proxies.len()),
            "all but the pod made anew",
            here + 1 >= proxies.len(),
        );
    }
    scene.all_served(SOON).await
}

/// Waits until a controller says that its clock is ahead by so many seconds, give or take what asking takes.
async fn until_it_shows(controller: &PodProcess, wanted: i64) -> Result<()> {
    // The file is read once a second.
    eventually("the clock to jump", Duration::from_secs(30), async || {
        let (_, page) = controller.get(9091, "/status").await?;
        let page: Value = serde_json::from_str(&page)?;
        let theirs = page["clockMillis"].as_i64().context("/status has no clock")?;
        let ahead = (theirs - Timestamp::now().as_millisecond()) / 1000;
        ensure!((ahead - wanted).abs() < 10, "it is {ahead} s ahead");
        Ok(())
    })
    .await
}

fn set(offsets: &[PathBuf], offset: &str) -> Result<()> {
    for file in offsets {
        std::fs::write(file, offset).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Installs control planes whose clocks can be changed.
async fn give_clocks(scene: &Scene) -> Result<()> {
    let mut settings = Vec::new();
    for (value, component) in ["osmController", "osmInjector"].iter().zip(COMPONENTS) {
        let (name, program) = (format!("{component}-clock"), scene.programs.join(component));
        let image = catalog::with_a_clock(&name, &program, OFFSET, &Progress::new())?;
        import::import(&image, &scene.checkout)?;
        settings.push(format!("image.name.{value}={name}"));
    }
    for component in COMPONENTS {
        patch_volume(scene, component, &json!({ "emptyDir": {} }), &json!({})).await?;
    }
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    scene.upgrade(&settings).await
}

async fn take_clocks(scene: &Scene) -> Result<()> {
    let gone = json!({ "$patch": "delete" });
    for component in COMPONENTS {
        patch_volume(scene, component, &gone, &gone).await?;
    }
    scene.upgrade(&[]).await
}

/// Adds the volume of the offset to a component's pods, or takes it away.
async fn patch_volume(scene: &Scene, component: &str, volume: &Value, mount: &Value) -> Result<()> {
    let (mut volume, mut mount) = (volume.clone(), mount.clone());
    volume["name"] = json!("clock");
    mount["mountPath"] = json!(FOLDER);
    if mount.get("$patch").is_none() {
        mount["name"] = json!("clock");
    }
    let container = json!({ "name": component, "volumeMounts": [mount] });
    let patch =
        json!({ "spec": { "template": { "spec": { "volumes": [volume], "containers": [container] } } } });
    let arguments = [
        "patch",
        "deployment",
        "-n",
        NAMESPACE,
        component,
        "--type=strategic",
        "-p",
        &patch.to_string(),
    ];
    scene.mesh.kubernetes.kubectl(&arguments, "").await.map(drop)
}
