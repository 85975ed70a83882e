//! Container images without Docker: described, written as OCI archives, imported into the local cluster.
//!
//! [`Image`] says what is in one; [`archive`] turns it into bytes; [`catalog`] lists those of this project;
//! [`import`] gives them to containerd. Invariant: the same content makes the same bytes, so that nothing is written or
//! imported twice.

pub mod archive;
mod base;
pub mod catalog;
mod debian;
pub mod import;
pub mod layer;
mod libraries;

use std::path::PathBuf;

pub use layer::{Entry, Layer};

/// Where a local image lives; nothing is ever pulled from a registry of that name.
pub const REGISTRY: &str = "localhost/osm";

/// The tag of everything built from a checkout.
pub const TAG: &str = "dev";

/// A container image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The name without registry and tag: `osm-controller`.
    pub name: String,
    /// From the bottom to the top. What changes rarely belongs below.
    pub layers: Vec<Layer>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `uid` or `uid:gid`; root if empty.
    pub user: String,
    /// `NAME=value`.
    pub environment: Vec<String>,
}

impl Image {
    /// The full name with the tag.
    pub fn reference(&self) -> String {
        format!("{REGISTRY}/{}:{TAG}", self.name)
    }
}

/// The file an image's archive is kept in.
fn archive_path(folder: &std::path::Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.tar"))
}
