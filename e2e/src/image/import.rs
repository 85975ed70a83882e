//! Giving images to the local cluster.
//!
//! Invariant: what is imported is what was described; an image whose content has not changed costs a hash.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Image, archive, archive_path};
use crate::checkout::Checkout;
use crate::cluster::containerd;
use crate::command::{command, run};

/// Writes the image's archive, if the one that is there is not the same. Returns the fingerprint.
pub fn write(image: &Image, checkout: &Checkout) -> Result<String> {
    let folder = checkout.images_dir();
    let fingerprint = archive::fingerprint(image)?;
    let marker = folder.join(format!("{}.fingerprint", image.name));
    let path = archive_path(&folder, &image.name);
    if !path.exists() || !is(&marker, &fingerprint) {
        let _ = fs::remove_file(&marker);
        archive::write(image, &path).with_context(|| format!("cannot build the image {}", image.name))?;
        fs::write(&marker, &fingerprint).with_context(|| format!("cannot write {}", marker.display()))?;
    }
    Ok(fingerprint)
}

/// Brings the image into the running cluster; says whether it was not there already.
pub fn import(image: &Image, checkout: &Checkout) -> Result<bool> {
    let markers = checkout.cluster_dir().join("images");
    fs::create_dir_all(&markers).with_context(|| format!("cannot create {}", markers.display()))?;
    let marker = markers.join(&image.name);
    let fingerprint = write(image, checkout)?;
    if is(&marker, &fingerprint) {
        return Ok(false);
    }
    let mut ctr = command("ctr", ["--address"]);
    ctr.arg(containerd::socket())
        .args(["--namespace", "k8s.io", "images", "import"]);
    ctr.arg(archive_path(&checkout.images_dir(), &image.name));
    run(&mut ctr).with_context(|| format!("cannot import {}: does the cluster run?", image.reference()))?;
    fs::write(&marker, fingerprint).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(true)
}

fn is(marker: &Path, fingerprint: &str) -> bool {
    fs::read_to_string(marker).is_ok_and(|found| found == fingerprint)
}
