//! The journal of what is kept: one file on the pod's memory-backed volume.
//!
//! Invariants: the file and the index agree, or nothing is kept any more; the file is replaced in one step when it is
//! compacted. Writes are not synced: the volume is memory, and lives as long as the pod.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use osm_core::relay::{Change, Compaction, Limits, Place, Store};

const JOURNAL: &str = "kept";
const NEXT: &str = "kept.new";

pub(super) struct Keeper {
    folder: PathBuf,
    open: Option<(File, Store)>,
}

impl Keeper {
    /// Opens what an earlier process has left. What cannot be read is replaced; without a usable folder, nothing is kept.
    pub(super) fn open(folder: &Path, limits: Limits) -> Self {
        let folder = folder.to_owned();
        let opened = load(&folder.join(JOURNAL), limits).or_else(|_| create(&folder.join(JOURNAL), limits));
        #[cfg(feature = "sabotage")]
        let opened = if osm_core::sabotage::Fault::Forgetful.is_on() {
            create(&folder.join(JOURNAL), limits)
        } else {
            opened
        };
        if let Err(error) = &opened {
            println!("nothing is kept: {}: {error}", folder.display());
        }
        Self {
            folder,
            open: opened.ok(),
        }
    }

    /// What is kept; `None` when nothing is any more.
    pub(super) fn store(&self) -> Option<&Store> {
        self.open.as_ref().map(|(_, store)| store)
    }

    /// Whether a whole configuration is kept.
    pub(super) fn is_complete(&self) -> bool {
        self.store().is_some_and(Store::is_complete)
    }

    /// What is kept, for people.
    pub(super) fn summary(&self) -> String {
        match self.store() {
            None => "nothing is kept".to_owned(),
            Some(store) => {
                let whole = if store.is_complete() {
                    ""
                } else {
                    ", not complete yet"
                };
                format!(
                    "{} resources of {} bytes are kept{whole}",
                    store.len(),
                    store.bytes()
                )
            }
        }
    }

    /// Writes changes down. When that is not possible, all that was kept is dropped: a part would not be the last good
    /// configuration.
    pub(super) fn write(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let Some((file, store)) = &mut self.open else {
            return;
        };
        let at = store.end();
        let result = match store.record(changes) {
            Err(error) => Err(error.to_string()),
            Ok(bytes) => file
                .write_all_at(&bytes, at)
                .and_then(|()| self.compact())
                .map_err(|error| error.to_string()),
        };
        if let Err(error) = result {
            println!("nothing is kept from now on: {error}");
            self.open = None;
            // There are keys in it.
            for name in [JOURNAL, NEXT] {
                let _ = fs::remove_file(self.folder.join(name));
            }
        }
    }

    /// Reads one resource.
    pub(super) fn read(&self, place: Place) -> io::Result<Bytes> {
        let (file, _) = self.open.as_ref().ok_or(io::ErrorKind::NotFound)?;
        read(file, place).map(Bytes::from)
    }

    fn compact(&mut self) -> io::Result<()> {
        let Some((old, store)) = &self.open else {
            return Ok(());
        };
        let Some(Compaction { head, copies, store }) = store.compaction() else {
            return Ok(());
        };
        let next = self.folder.join(NEXT);
        let mut writer = io::BufWriter::new(file(&next)?);
        writer.write_all(&head)?;
        for place in copies {
            writer.write_all(&read(old, place)?)?;
        }
        let new = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(&next, self.folder.join(JOURNAL))?;
        self.open = Some((new, store));
        Ok(())
    }
}

fn read(file: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.length as usize];
    file.read_exact_at(&mut bytes, place.offset)?;
    Ok(bytes)
}

/// An empty file, for reading and writing.
fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

fn create(path: &Path, limits: Limits) -> io::Result<(File, Store)> {
    let (store, header) = Store::new(limits);
    let file = file(path)?;
    file.write_all_at(header, 0)?;
    Ok((file, store))
}

fn load(path: &Path, limits: Limits) -> io::Result<(File, Store)> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    // Whatever another limit has let in is read, but no file without end.
    let longest = limits.bytes.saturating_mul(4);
    let mut journal = Vec::new();
    (&mut file).take(longest).read_to_end(&mut journal)?;
    let store = Store::read(limits, &journal).ok_or(io::ErrorKind::InvalidData)?;
    file.set_len(store.end())?;
    Ok((file, store))
}

#[cfg(test)]
mod tests {
    use osm_core::resource::{ResourceType, Version};

    use super::*;

    fn keep(name: &str, body: &[u8]) -> Change {
        Change::Keep {
            kind: ResourceType::Secret,
            name: name.into(),
            version: Version::of(body),
            body: Bytes::copy_from_slice(body),
        }
    }

    fn body(keeper: &Keeper, name: &str) -> Option<Bytes> {
        let place = keeper.store()?.body(ResourceType::Secret, name)?;
        Some(keeper.read(place).expect("it can be read"))
    }

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut keeper = Keeper::open(folder.path(), Limits::default());
        for number in 0..3_000 {
            // Enough for several compactions.
            keeper.write(&[keep("a", &[number as u8; 1_000]), keep("b", b"other")]);
        }
        keeper.write(&[Change::Complete]);
        assert!(fs::metadata(folder.path().join(JOURNAL)).expect("a file").len() < 300_000);
        let keeper = Keeper::open(folder.path(), Limits::default());
        assert!(keeper.is_complete());
        assert_eq!(
            body(&keeper, "a"),
            Some(Bytes::from(vec![2_999_u32 as u8; 1_000]))
        );
        assert_eq!(body(&keeper, "b"), Some(Bytes::from_static(b"other")));
    }

    #[test]
    fn a_write_that_was_cut_off_costs_only_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(JOURNAL);
        let mut keeper = Keeper::open(folder.path(), Limits::default());
        keeper.write(&[keep("a", b"first")]);
        keeper.write(&[keep("a", b"second")]);
        let length = fs::metadata(&path).expect("a file").len();
        let file = OpenOptions::new().write(true).open(&path).expect("a file");
        file.set_len(length - 3).expect("cut");
        let mut keeper = Keeper::open(folder.path(), Limits::default());
        assert_eq!(body(&keeper, "a"), Some(Bytes::from_static(b"first")));
        keeper.write(&[keep("a", b"third")]);
        let keeper = Keeper::open(folder.path(), Limits::default());
        assert_eq!(body(&keeper, "a"), Some(Bytes::from_static(b"third")));
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            bytes: 1_000,
            ..Limits::default()
        };
        let mut keeper = Keeper::open(folder.path(), limits);
        keeper.write(&[keep("a", b"small")]);
        keeper.write(&[keep("b", &[0; 2_000])]);
        assert!(keeper.store().is_none());
        assert!(!folder.path().join(JOURNAL).exists());
        keeper.write(&[keep("c", b"small")]);
        assert!(keeper.store().is_none());
    }

    #[test]
    fn without_a_folder_nothing_is_kept() {
        let mut keeper = Keeper::open(Path::new("/nonexistent/folder"), Limits::default());
        keeper.write(&[keep("a", b"a")]);
        assert!(keeper.store().is_none());
    }
}
