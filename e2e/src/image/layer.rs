//! One layer: files with their places and modes, written as a tar that depends on nothing else.
//!
//! Invariant: no time, owner or order of the building machine gets into the tar.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What is at one place of the file system.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A copy of a file of this machine.
    File { source: PathBuf, mode: u32, owner: u64 },
    /// A file with this content.
    Text { content: String, mode: u32 },
    /// A symbolic link to this path.
    Link(PathBuf),
    /// A folder; those above an entry are made without being named.
    Folder { mode: u32, owner: u64 },
}

/// Places, each absolute, with what is there.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Layer {
    /// Puts an entry at an absolute place, over whatever was there.
    pub fn put(&mut self, place: impl Into<PathBuf>, entry: Entry) -> &mut Self {
        self.entries.insert(place.into(), entry);
        self
    }

    /// Puts a copy of a file, owned by root, with the source's mode.
    pub fn copy(&mut self, source: &Path, place: impl Into<PathBuf>) -> Result<&mut Self> {
        let source = source
            .canonicalize()
            .with_context(|| format!("cannot find {}", source.display()))?;
        let mode = fs::metadata(&source)?.permissions().mode() & 0o7777;
        Ok(self.put(
            place,
            Entry::File {
                source,
                mode,
                owner: 0,
            },
        ))
    }

    /// Puts everything below a folder of this machine; links stay links. All of it is owned by `owner`.
    pub fn copy_tree(&mut self, source: &Path, place: &Path, owner: u64) -> Result<&mut Self> {
        let told = || format!("cannot read {}", source.display());
        let metadata = fs::symlink_metadata(source).with_context(told)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_symlink() {
            return Ok(self.put(place, Entry::Link(fs::read_link(source).with_context(told)?)));
        }
        if metadata.is_file() {
            return Ok(self.put(
                place,
                Entry::File {
                    source: source.to_owned(),
                    mode,
                    owner,
                },
            ));
        }
        if metadata.is_dir() {
            self.put(place, Entry::Folder { mode, owner });
            for entry in fs::read_dir(source).with_context(told)? {
                let entry = entry.with_context(told)?;
                self.copy_tree(&entry.path(), &place.join(entry.file_name()), owner)?;
            }
        }
        // Sockets and devices have no business in an image.
        Ok(self)
    }

    /// The places there are.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        self.entries.keys().map(PathBuf::as_path)
    }

    /// Hash of everything the layer's bytes depend on, without writing them.
    pub fn fingerprint(&self, hash: &mut Sha256) -> Result<()> {
        for (place, entry) in &self.entries {
            let described = match entry {
                // The content comes from elsewhere; where exactly makes no difference.
                Entry::File { mode, owner, .. } => format!("file {mode} {owner}"),
                other => format!("{other:?}"),
            };
            for part in [place.to_string_lossy().as_bytes(), described.as_bytes()] {
                hash.update(part.len().to_le_bytes());
                hash.update(part);
            }
            if let Entry::File { source, .. } = entry {
                let mut file =
                    fs::File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
                hash.update(file.metadata()?.len().to_le_bytes());
                copy_to_hash(&mut file, hash)?;
            }
        }
        Ok(())
    }

    /// Writes the tar.
    pub fn write(&self, to: impl Write) -> Result<()> {
        let mut tar = Builder::new(to);
        for (place, entry) in self.with_parents()? {
            let name = place.strip_prefix("/")?;
            let told = || format!("cannot add {} to an image", place.display());
            match entry {
                Entry::File { source, mode, owner } => {
                    let file = fs::File::open(&source).with_context(told)?;
                    let size = file.metadata()?.len();
                    tar.append_data(&mut header(EntryType::Regular, mode, owner, size), name, file)
                        .with_context(told)?;
                }
                Entry::Text { content, mode } => {
                    let size = content.len() as u64;
                    tar.append_data(
                        &mut header(EntryType::Regular, mode, 0, size),
                        name,
                        content.as_bytes(),
                    )
                    .with_context(told)?;
                }
                Entry::Link(target) => {
                    tar.append_link(&mut header(EntryType::Symlink, 0o777, 0, 0), name, target)
                        .with_context(told)?;
                }
                Entry::Folder { mode, owner } => {
                    tar.append_data(
                        &mut header(EntryType::Directory, mode, owner, 0),
                        name,
                        std::io::empty(),
                    )
                    .with_context(told)?;
                }
            }
        }
        tar.finish()?;
        Ok(())
    }

    fn with_parents(&self) -> Result<BTreeMap<PathBuf, Entry>> {
        let mut all = self.entries.clone();
        for place in self.entries.keys() {
            if !place.is_absolute() {
                bail!("{} is not an absolute place in an image", place.display());
            }
            for parent in place
                .ancestors()
                .skip(1)
                .filter(|parent| *parent != Path::new("/"))
            {
                all.entry(parent.to_owned()).or_insert(Entry::Folder {
                    mode: 0o755,
                    owner: 0,
                });
            }
        }
        Ok(all)
    }
}

fn header(kind: EntryType, mode: u32, owner: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_size(size);
    header.set_mtime(0);
    header
}

fn copy_to_hash(file: &mut impl std::io::Read, hash: &mut Sha256) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        hash.update(&buffer[..read]);
    }
}
