//! Making the cluster.
//!
//! Owns the order of things. Invariant: may be killed at any moment and run again; what runs and is sound is left as it is.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use super::certificates::Certificates;
use super::control_plane::{self, Setup};
use super::daemon::Supervisor;
use super::kubectl::Kubectl;
use super::programs::Programs;
use super::record::{self, Record};
use super::{
    Cluster, addons, cgroup, containerd, down, is_current, leftovers, lock, mounts, network, node, packages,
    settings,
};
use crate::checkout::Checkout;
use crate::image::{Image, catalog, import};
use crate::progress::{Progress, seconds};

/// The programs of a cluster; each must run for it to be sound.
const PROCESSES: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "mounts",
    "containerd",
    "kubelet",
    "kube-proxy",
];

/// Makes the local cluster, or finds that it is there. With `CLUSTER=current`, only sees that the other one answers.
pub fn up(checkout: &Checkout, progress: &Progress) -> Result<()> {
    if is_current() {
        let cluster = Cluster::connect()?;
        progress.say(&format!(
            "the cluster of {} answers",
            cluster.kubeconfig.display()
        ));
        return Ok(());
    }
    require_root()?;
    let change = lock::for_change()?;
    let (programs, images) = prepare(checkout, progress)?;
    link_programs(checkout, &programs)?;
    if is_sound(checkout, &programs) {
        progress.say(&format!(
            "the cluster is up already; kubeconfig: {}",
            checkout.kubeconfig().display()
        ));
        return Ok(());
    }
    make_room(checkout, progress)?;
    create(checkout, &programs, &images, &change, progress).inspect_err(|_| {
        progress.say("what has been started stays for inspection; logs are in .local/cluster/log");
    })?;
    progress.say(&format!(
        "the cluster is up after {}; export KUBECONFIG={} PATH={}:$PATH",
        seconds(progress.elapsed()),
        checkout.kubeconfig().display(),
        checkout.bin().display(),
    ));
    Ok(())
}

/// Removes the local cluster of whichever checkout, and sees that nothing of it is left.
pub fn down(checkout: &Checkout, progress: &Progress) -> Result<()> {
    if is_current() {
        bail!("CLUSTER=current: that cluster was not made here, so it is not removed here");
    }
    require_root()?;
    let held = lock::for_change()?;
    let before = Record::load().unwrap_or_default();
    if leftovers::any(&checkout.cluster_dir())? {
        make_room(checkout, progress)?;
    } else {
        progress.say("no cluster is up");
    }
    leftovers::none(&checkout.cluster_dir(), &before)?;
    lock::leave(held);
    Ok(())
}

fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the local cluster needs root: it makes namespaces and control groups");
    }
    Ok(())
}

/// What can be done before anything of an old cluster is touched, and takes long the first time.
fn prepare(checkout: &Checkout, progress: &Progress) -> Result<(Programs, Vec<Image>)> {
    let programs = thread::scope(|scope| {
        let packages = scope.spawn(|| packages::ensure(&packages::NODE, progress));
        let programs = Programs::ensure(checkout, progress)?;
        joined(packages.join())?;
        anyhow::Ok(programs)
    })?;
    let images = catalog::system(&programs, checkout)?;
    Ok((programs, images))
}

/// Puts the programs a user needs where the kubeconfig is.
fn link_programs(checkout: &Checkout, programs: &Programs) -> Result<()> {
    let bin = checkout.bin();
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    for name in ["kubectl", "helm"] {
        replace_link(&programs.path(name)?, bin.join(name))?;
    }
    Ok(())
}

/// Makes `place` a link to `target`, whatever it was.
pub fn replace_link(target: &std::path::Path, place: PathBuf) -> Result<()> {
    if fs::read_link(&place).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let _ = fs::remove_file(&place);
    symlink(target, &place).with_context(|| format!("cannot create {}", place.display()))
}

fn is_sound(checkout: &Checkout, programs: &Programs) -> bool {
    let Some(record) = Record::load() else {
        return false;
    };
    record.checkout == checkout.root()
        && record.boot == record::boot()
        && record.fingerprint == programs.fingerprint()
        && PROCESSES.iter().all(|name| record.running(name).is_some())
        && kubectl(checkout).answers("/readyz")
}

fn kubectl(checkout: &Checkout) -> Kubectl {
    Kubectl::new(checkout.bin().join("kubectl"), checkout.kubeconfig())
}

/// Removes what is left of an earlier run, of this checkout or another; asks the users of another one's first.
fn make_room(checkout: &Checkout, progress: &Progress) -> Result<()> {
    let own = checkout.cluster_dir();
    if !leftovers::any(&own)? {
        return Ok(());
    }
    let other = Record::load()
        .map(|record| record.checkout)
        .filter(|owner| owner != checkout.root());
    let _users = other.as_deref().map(lock::without_users).transpose()?;
    let whose = other
        .map(|owner| format!(" (of {})", owner.display()))
        .unwrap_or_default();
    progress.step(&format!("remove the old cluster{whose}"), || down::remove(&own))
}

fn create(
    checkout: &Checkout,
    programs: &Programs,
    images: &[Image],
    change: &File,
    progress: &Progress,
) -> Result<()> {
    let state = checkout.cluster_dir();
    fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
    let record = Record {
        checkout: checkout.root().to_owned(),
        fingerprint: programs.fingerprint().to_owned(),
        boot: record::boot(),
        settings: settings::current(),
        ..Record::default()
    };
    let supervisor = Supervisor::new(record, state.join("log"), change)?;
    let certificates = progress.step("network, certificates", || {
        cgroup::create()?;
        settings::raise()?;
        network::create()?;
        let api = format!("https://{}:6443", network::NODE);
        let certificates = Certificates::create(&state.join("certificates"), node::NAME, &api)?;
        fs::copy(certificates.file("admin.kubeconfig"), checkout.kubeconfig())
            .context("cannot write the kubeconfig")?;
        Ok(certificates)
    })?;
    let setup = Setup {
        supervisor: &supervisor,
        programs,
        certificates: &certificates,
        state: &state,
    };
    let kubectl = kubectl(checkout);

    // Two lines of work that do not need each other: the control plane, and what containers need.
    let mounts = thread::scope(|scope| {
        let runtime = scope.spawn(|| {
            let mounts = mounts::hold(&supervisor, &state)?;
            progress.step("containerd", || containerd::start(&setup, mounts.pid))?;
            progress.step("images of the system", || {
                images
                    .iter()
                    .try_for_each(|image| import::import(image, checkout).map(drop))
            })?;
            anyhow::Ok(mounts.pid)
        });
        progress.step("etcd, API server", || {
            let etcd = control_plane::start_etcd(&setup)?;
            let server = control_plane::start_api_server(&setup)?;
            control_plane::await_api_server(&setup, &[&etcd, &server], &kubectl)
        })?;
        joined(runtime.join())
    })?;
    progress.step("node, cluster DNS", || {
        control_plane::start_controllers(&setup)?;
        node::start_kubelet(&setup, mounts)?;
        node::start_proxy(&setup)?;
        addons::apply(&kubectl)?;
        addons::await_ready(&kubectl)
    })
}

/// What a thread returned; a panic in it becomes an error.
fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.map_err(|_| anyhow!("a part of the work panicked; see above"))?
}
