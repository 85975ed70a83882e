//! Who may do what with the machine's one cluster: the two lock files in the machine-wide folder.
//!
//! Invariant: a lock that is held is a lock on the file that others find by its name. The last to leave removes the
//! files while it holds them; whoever had opened one of them before looks again.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::record::RUN;

const CHANGE: &str = "lock";
const USE: &str = "in-use";

/// Whether a file of that name in the machine-wide folder is one of the locks.
pub(super) fn is_lock(name: &OsStr) -> bool {
    name == CHANGE || name == USE
}

/// Held while the cluster is made or removed; waits for another such run to end.
pub(super) fn for_change() -> Result<File> {
    let mut told = false;
    locked(Path::new(RUN), CHANGE, |file| {
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            if !std::mem::replace(&mut told, true) {
                eprintln!(
                    "   ...  another `osm-e2e cluster` command is at work on this machine; waiting for it"
                );
            }
            file.lock().context("cannot lock the cluster")?;
        }
        Ok(())
    })
}

/// Held by whoever works with the cluster: while anyone does, no other checkout may take the machine over.
pub(super) fn for_use() -> Result<File> {
    locked(Path::new(RUN), USE, |file| {
        file.lock_shared().context("cannot lock the cluster for use")
    })
}

/// Waits a little for the users of another checkout's cluster to end, and refuses to take it from them if they do not.
pub(super) fn without_users(owner: &Path) -> Result<File> {
    locked(Path::new(RUN), USE, |file| {
        for _ in 0..50 {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
                Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cluster"),
            }
        }
        bail!(
            "the cluster of {} is in use: wait for its tests or demo to end, or end them, and try again",
            owner.display()
        )
    })
}

/// Ends a change after which no cluster is left: the locks go, and with them the folder, unless somebody has come to
/// wait meanwhile.
pub(super) fn leave(change: File) {
    leave_in(Path::new(RUN), change);
}

fn leave_in(folder: &Path, change: File) {
    // What cannot be removed is in use by others, who will remove it.
    if open(folder, USE).is_ok_and(|users| users.try_lock().is_ok()) {
        let _ = fs::remove_file(folder.join(USE));
    }
    let _ = fs::remove_file(folder.join(CHANGE));
    let _ = fs::remove_dir(folder);
    drop(change);
}

/// Locks the file of that name that is there once the lock is had.
fn locked(folder: &Path, name: &str, mut lock: impl FnMut(&File) -> Result<()>) -> Result<File> {
    loop {
        let file = open(folder, name)?;
        lock(&file)?;
        if is_at(&file, &folder.join(name)) {
            return Ok(file);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |it: std::io::Result<fs::Metadata>| it.map(|it| (it.dev(), it.ino())).ok();
    let there = place(fs::metadata(path));
    there.is_some() && there == place(file.metadata())
}

fn open(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    loop {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}: are you root?", folder.display()))?;
        match File::options().create(true).append(true).open(&path) {
            // The folder went again in between.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened.with_context(|| format!("cannot open {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exclusive(file: &File) -> Result<()> {
        file.lock().context("lock")
    }

    #[test]
    fn leaving_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let change = locked(&folder, CHANGE, exclusive).unwrap();
        drop(locked(&folder, USE, exclusive).unwrap());
        leave_in(&folder, change);
        assert!(!folder.exists());
    }

    #[test]
    fn locks_in_use_stay() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let change = locked(&folder, CHANGE, exclusive).unwrap();
        let users = locked(&folder, USE, |file| file.lock_shared().context("lock")).unwrap();
        leave_in(&folder, change);
        assert!(is_at(&users, &folder.join(USE)));
        assert!(!folder.join(CHANGE).exists());
    }

    /// Who waited for a file that is gone would otherwise share the cluster with who comes next.
    #[test]
    fn who_waited_holds_the_lock_that_others_find() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let change = locked(&folder, CHANGE, exclusive).unwrap();
        let opened = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let mut first = true;
                locked(&folder, CHANGE, |file| {
                    if std::mem::take(&mut first) {
                        opened.wait();
                    }
                    exclusive(file)
                })
            });
            opened.wait();
            leave_in(&folder, change);
            let held = waiter.join().unwrap().unwrap();
            assert!(is_at(&held, &folder.join(CHANGE)));
            let other = open(&folder, CHANGE).unwrap();
            assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        });
    }
}
