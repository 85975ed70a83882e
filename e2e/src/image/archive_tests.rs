use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use super::*;
use crate::image::Entry;

fn image(program: &Path) -> Image {
    let mut layer = Layer::default();
    layer.copy(program, "/usr/bin/program").unwrap();
    layer.put(
        "/etc/passwd",
        Entry::Text {
            content: "root:x:0:0::/:\n".to_owned(),
            mode: 0o644,
        },
    );
    layer.put("/bin", Entry::Link("usr/bin".into()));
    Image {
        name: "test".to_owned(),
        layers: vec![layer],
        entrypoint: vec!["/usr/bin/program".to_owned()],
        ..Image::default()
    }
}

fn program() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "#!/bin/sh\n").unwrap();
    file
}

fn blobs(archive: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut tar = tar::Archive::new(File::open(archive).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, File>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().into_owned(), bytes)
    };
    tar.entries().unwrap().map(read).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

#[test]
fn every_digest_is_that_of_its_blob_and_all_hang_together() {
    let (program, folder) = (program(), tempfile::tempdir().unwrap());
    let path = folder.path().join("test.tar");
    write(&image(program.path()), &path).unwrap();
    let blobs = blobs(&path);
    for (name, bytes) in &blobs {
        if let Ok(digest) = name.strip_prefix("blobs/sha256") {
            assert_eq!(digest.to_str().unwrap(), sha256(bytes));
        }
    }
    let get = |digest: &Value| {
        let name = digest.as_str().unwrap().replace(':', "/");
        &blobs[&Path::new("blobs").join(name)]
    };
    let index: Value = serde_json::from_slice(&blobs[Path::new("index.json")]).unwrap();
    let entry = &index["manifests"][0];
    assert_eq!(
        entry["annotations"]["io.containerd.image.name"],
        "localhost/osm/test:dev"
    );
    let manifest: Value = serde_json::from_slice(get(&entry["digest"])).unwrap();
    let config: Value = serde_json::from_slice(get(&manifest["config"]["digest"])).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    assert_eq!(
        manifest["layers"][0]["size"].as_u64().unwrap() as usize,
        get(&manifest["layers"][0]["digest"]).len()
    );
    // Nothing but the archive is left in the folder.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_same_content_makes_the_same_bytes_wherever_it_lies() {
    let (one, other, folder) = (program(), program(), tempfile::tempdir().unwrap());
    let (first, second) = (folder.path().join("1"), folder.path().join("2"));
    write(&image(one.path()), &first).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::write(other.path(), "#!/bin/sh\n").unwrap();
    write(&image(other.path()), &second).unwrap();
    assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    assert_eq!(
        fingerprint(&image(one.path())).unwrap(),
        fingerprint(&image(other.path())).unwrap()
    );
}

#[test]
fn whatever_is_in_the_image_changes_its_fingerprint() {
    let program = program();
    let first = fingerprint(&image(program.path())).unwrap();
    let mut changed = vec![image(program.path()); 4];
    changed[0].entrypoint.push("--flag".to_owned());
    changed[1].user = "1500".to_owned();
    changed[2].environment.push("A=b".to_owned());
    changed[3].layers[0].put(
        "/etc/passwd",
        Entry::Text {
            content: String::new(),
            mode: 0o644,
        },
    );
    for image in &changed {
        assert_ne!(fingerprint(image).unwrap(), first);
    }
    fs::write(program.path(), "#!/bin/bash\n").unwrap();
    assert_ne!(fingerprint(&image(program.path())).unwrap(), first);
}

#[test]
fn folders_above_a_file_are_made_and_relative_places_refused() {
    let program = program();
    let mut bytes = Vec::new();
    image(program.path()).layers[0].write(&mut bytes).unwrap();
    let mut tar = tar::Archive::new(bytes.as_slice());
    let names: Vec<_> = tar
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    assert_eq!(
        names,
        ["bin", "etc", "etc/passwd", "usr", "usr/bin", "usr/bin/program"].map(PathBuf::from)
    );
    let mut layer = Layer::default();
    layer.put("etc/passwd", Entry::Link("x".into()));
    assert!(layer.write(Vec::new()).is_err());
}
