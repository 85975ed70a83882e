//! `make demo`: a mesh from nothing, the book trade on it, and a verdict made of measurements.
//!
//! Owns the script. What it shows is measured in the running mesh, never assumed.
//! Invariant: it succeeds only if every line of the verdict is as policy says.

mod books;
mod measure;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::ground::{self, Ground};
use crate::harness::Mesh;
use crate::harness::mesh::NAMESPACE;
use crate::progress::seconds;

/// The namespaces of the demo that belong to the mesh.
const MESHED: [&str; 4] = ["bookbuyer", "bookthief", "bookstore", "bookwarehouse"];
/// A namespace that does not.
const OUTSIDE: &str = "outside";

/// Runs the demo: on a cluster of its own, or on the one of `$KUBECONFIG` if `CLUSTER=current`.
pub fn run() -> Result<()> {
    let begun = Instant::now();
    let ground = ground::prepare()?;
    let broken = ground.block_on(show(&ground))?;
    println!("The demo took {}.", seconds(begun.elapsed()));
    ensure!(broken == 0, "{broken} lines above are not what the policy says");
    Ok(())
}

async fn show(ground: &Ground) -> Result<usize> {
    let say = Narrator::default();
    let mesh = ground.mesh().await?;
    say.step("removing what an earlier run left");
    ground::clear(&mesh).await?;

    say.step("osm install: two controllers, two injectors, deny by default");
    let arguments = mesh.install_arguments(&["enablePermissiveTrafficPolicy=false", "enableEgress=false"]);
    mesh.osm_ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        .await?;
    ground::mark(&mesh).await?;

    say.step("osm namespace add; kubectl apply: the book trade, each part in its own namespace");
    deploy(ground, &mesh).await?;
    say.step("waiting for the applications and their sidecars");
    let cast = books::Cast::find(&mesh).await?;

    let mut verdict = table::Verdict::default();
    say.step("measuring: no policy yet, so nobody may call anybody");
    measure::before_policy(&cast, &mut verdict).await?;

    say.step("kubectl apply: who may call whom, and a split of 25 to 75");
    for manifest in ["access/bookbuyer.yaml", "split/25-75.yaml"] {
        kubectl_apply(ground, &mesh, manifest).await?;
    }
    say.step("letting traffic run");
    measure::until_bought(&cast).await?;
    say.step("measuring");
    measure::with_policy(&mesh, &cast, &mut verdict).await?;

    println!("\n{verdict}");
    print_farewell(ground);
    Ok(verdict.broken())
}

async fn deploy(ground: &Ground, mesh: &Arc<Mesh>) -> Result<()> {
    for namespace in MESHED.iter().chain([&OUTSIDE]) {
        mesh.kubernetes
            .create_namespace(namespace, json!({}), json!({}))
            .await?;
    }
    let add = [&["namespace", "add"], &MESHED[..]].concat();
    mesh.osm_ok(&add).await?;
    for manifest in [
        "mysql",
        "bookwarehouse",
        "bookstore",
        "bookbuyer",
        "bookthief",
        "outsider",
    ] {
        kubectl_apply(ground, mesh, &format!("apps/{manifest}.yaml")).await?;
    }
    Ok(())
}

/// Applies a manifest of the demo, with the images of this cluster in it.
async fn kubectl_apply(ground: &Ground, mesh: &Mesh, manifest: &str) -> Result<()> {
    let path = ground.checkout().root().join("e2e/manifests").join(manifest);
    let text = tokio::fs::read_to_string(&path)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    let text = text
        .replace("osm-demo-mariadb:latest", &mesh.images.mariadb)
        .replace("osm-demo:latest", &mesh.images.demo);
    mesh.kubernetes
        .kubectl(&["apply", "-f", "-"], &text)
        .await
        .with_context(|| format!("kubectl apply {manifest}"))?;
    Ok(())
}

fn print_farewell(ground: &Ground) {
    let root = ground.checkout().root().display();
    println!("The cluster stays up. To look around:\n");
    println!(
        "  export KUBECONFIG={} PATH={}:$PATH",
        ground.kubeconfig().display(),
        ground.bin().display()
    );
    println!("  kubectl get pods -A                                     # everything that runs");
    println!("  kubectl logs -n bookthief deploy/bookthief -c bookthief -f");
    println!("  kubectl apply -f {root}/e2e/manifests/access/bookthief.yaml   # let the thief buy");
    println!("  kubectl apply -f {root}/e2e/manifests/split/v2.yaml           # send everyone to version 2");
    println!("  osm mesh list");
    println!("  osm proxy get stats -n bookbuyer \"$(kubectl get pod -n bookbuyer -o name | cut -d/ -f2)\"");
    println!("  kubectl patch meshconfig osm-mesh-config -n {NAMESPACE} --type merge \\");
    println!(
        "    -p '{{\"spec\":{{\"traffic\":{{\"enablePermissiveTrafficPolicyMode\":true}}}}}}'   # let everyone call everyone"
    );
    println!("  make cluster-down                                       # remove all of it\n");
}

/// Says what is being done, and how long after the beginning.
struct Narrator {
    begun: Instant,
}

impl Default for Narrator {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
        }
    }
}

impl Narrator {
    fn step(&self, what: &str) {
        println!("[{:>9}] {what}", seconds(self.begun.elapsed()));
    }
}

/// How long the pods of the demo may take to get ready on a slow machine.
const PODS_READY: Duration = Duration::from_secs(240);
