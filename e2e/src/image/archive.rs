//! The OCI image layout of one image, in one tar: what `ctr images import` reads.
//!
//! Layers are not compressed: they go from one process of this machine to another.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{Image, Layer};
use crate::cluster::programs::hex;

/// A blob of the layout: what it holds is in `file`.
struct Blob {
    digest: String,
    size: u64,
    file: tempfile::NamedTempFile,
}

/// Hash of everything the archive depends on.
pub fn fingerprint(image: &Image) -> Result<String> {
    let mut hash = Sha256::new();
    let words = [
        format!("{:?}", image.entrypoint),
        image.user.clone(),
        format!("{:?}", image.environment),
    ];
    for word in std::iter::once(image.reference()).chain(words) {
        hash.update(word.len().to_le_bytes());
        hash.update(word);
    }
    for layer in &image.layers {
        hash.update(b"layer");
        layer.fingerprint(&mut hash)?;
    }
    Ok(hex(hash))
}

/// Writes the archive to `path`, which appears whole or not at all.
pub fn write(image: &Image, path: &Path) -> Result<()> {
    let folder = path.parent().context("an archive needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let layers = image
        .layers
        .iter()
        .map(|layer| layer_blob(layer, folder))
        .collect::<Result<Vec<_>>>()?;
    let config = json_blob(&config(image, &layers), folder)?;
    let manifest = json_blob(&manifest(&config, &layers), folder)?;
    let index = index(image, &manifest);

    let draft = tempfile::NamedTempFile::new_in(folder)?;
    let mut tar = Builder::new(BufWriter::new(draft));
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
    for blob in [&manifest, &config].into_iter().chain(&layers) {
        let mut header = header(blob.size);
        tar.append_data(
            &mut header,
            format!("blobs/sha256/{}", blob.digest),
            File::open(blob.file.path())?,
        )?;
    }
    let draft = tar
        .into_inner()?
        .into_inner()
        .map_err(|error| error.into_error())?;
    draft
        .persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

fn config(image: &Image, layers: &[Blob]) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "User": image.user,
            "Env": image.environment,
        },
        "rootfs": {
            "type": "layers",
            // Not compressed, so that the digest of a layer is also that of its blob.
            "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>(),
        },
    })
}

fn manifest(config: &Blob, layers: &[Blob]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers
            .iter()
            .map(|layer| descriptor(layer, "application/vnd.oci.image.layer.v1.tar"))
            .collect::<Vec<_>>(),
    })
}

fn index(image: &Image, manifest: &Blob) -> Value {
    let mut entry = descriptor(manifest, "application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({"io.containerd.image.name": image.reference()});
    json!({"schemaVersion": 2, "manifests": [entry]})
}

fn descriptor(blob: &Blob, media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", blob.digest), "size": blob.size})
}

fn layer_blob(layer: &Layer, folder: &Path) -> Result<Blob> {
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let mut hashing = Hashing {
        to: BufWriter::new(file),
        hash: Sha256::new(),
        size: 0,
    };
    layer.write(&mut hashing)?;
    hashing.finish()
}

fn json_blob(value: &Value, folder: &Path) -> Result<Blob> {
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let mut hashing = Hashing {
        to: BufWriter::new(file),
        hash: Sha256::new(),
        size: 0,
    };
    serde_json::to_writer(&mut hashing, value)?;
    hashing.finish()
}

fn append(tar: &mut Builder<impl Write>, name: &str, content: &[u8]) -> Result<()> {
    tar.append_data(&mut header(content.len() as u64), name, content)?;
    Ok(())
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    header
}

/// Writes through, hashing what passes.
struct Hashing {
    to: BufWriter<tempfile::NamedTempFile>,
    hash: Sha256,
    size: u64,
}

impl Hashing {
    fn finish(self) -> Result<Blob> {
        let file = self.to.into_inner().map_err(|error| error.into_error())?;
        Ok(Blob {
            digest: hex(self.hash),
            size: self.size,
            file,
        })
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
