//! What every image has: accounts, name service, certificates of public authorities, a place for temporary files.

use std::path::Path;

use anyhow::Result;

use super::{Entry, Image, Layer, libraries};

/// The account programs run as that need no special rights.
pub(super) const NOBODY: &str = "65534:65534";

/// The account of the sidecar's proxy; its traffic is recognised by it.
const ENVOY_USER: u32 = 1500;

/// The bottom layer, the same for every image.
pub(super) fn base() -> Result<Layer> {
    let mut layer = Layer::default();
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/sh\nmysql:x:999:999::/var/lib/mysql:/bin/false\n\
         envoy:x:{ENVOY_USER}:{ENVOY_USER}::/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    );
    let group = format!("root:x:0:\nmysql:x:999:\nenvoy:x:{ENVOY_USER}:\nnogroup:x:65534:\n");
    for (place, content) in [
        ("/etc/passwd", passwd),
        ("/etc/group", group),
        (
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
    ] {
        layer.put(place, Entry::Text { content, mode: 0o644 });
    }
    layer.put(
        "/tmp",
        Entry::Folder {
            mode: 0o1777,
            owner: 0,
        },
    );
    layer.put(
        "/run",
        Entry::Folder {
            mode: 0o755,
            owner: 0,
        },
    );
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if authorities.exists() {
        layer.copy(authorities, authorities)?;
    }
    Ok(layer)
}

/// An image of one program with its libraries.
pub(super) fn program(name: &str, binary: &Path, place: &str) -> Result<Image> {
    let mut below = Layer::default();
    libraries::add(&mut below, binary)?;
    let mut top = Layer::default();
    let source = binary.canonicalize()?;
    top.put(
        place,
        Entry::File {
            source,
            mode: 0o755,
            owner: 0,
        },
    );
    Ok(Image {
        name: name.to_owned(),
        layers: vec![base()?, below, top],
        entrypoint: vec![place.to_owned()],
        user: NOBODY.to_owned(),
        environment: vec!["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
    })
}
