//! One process writes to a place at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::atomic::{parent_of, sibling};
use crate::error::{Error, IoContext, Result};

/// The right to write to a place, for as long as this lives: `.NAME.lock` beside it, locked, and
/// gone at the end. The system lets go of the lock of a process that was killed, so what such a
/// process leaves is in nobody's way.
#[derive(Debug)]
pub struct OutputLock {
    path: PathBuf,
    /// None where the file system knows no locks.
    lock: Option<File>,
}

impl OutputLock {
    /// Claims a file or folder that is there or shall be.
    ///
    /// # Errors
    /// `Recipe` where another process has it; `Io`.
    pub fn of(target: &Path) -> Result<Self> {
        let parent = parent_of(target);
        fs::create_dir_all(&parent).at_path(&parent)?;
        // Under whatever name or link it is given.
        let place = match (
            target.canonicalize(),
            parent.canonicalize(),
            target.file_name(),
        ) {
            (Ok(place), ..) => place,
            (_, Ok(parent), Some(name)) => parent.join(name),
            _ => target.to_path_buf(),
        };
        let path = sibling(&place, "lock")?;
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .at_path(&path)?;
            match file.try_lock() {
                // Removed by the process that had it, after this one had opened it: the next one
                // opens another.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => {
                    return Ok(OutputLock {
                        path,
                        lock: Some(file),
                    });
                }
                Err(TryLockError::WouldBlock) => {
                    let message = format!(
                        "the output `{}` is being written by another process",
                        target.display()
                    );
                    return Err(Error::Recipe(format!(
                        "{message}; wait until it is done, or give another name"
                    )));
                }
                Err(TryLockError::Error(_)) => return Ok(OutputLock { path, lock: None }),
            }
        }
    }
}

/// Whether a path still leads to an opened file.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // While it is still locked: another process must not have claimed it meanwhile.
        let _ = fs::remove_file(&self.path);
        drop(self.lock.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_claimed_once_at_a_time_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new").join("out");
        let claim = OutputLock::of(&target).unwrap();
        let refusal = OutputLock::of(&target).unwrap_err();
        assert!(
            refusal.is_usage() && refusal.to_string().contains("another process"),
            "{refusal}"
        );
        OutputLock::of(&dir.path().join("new").join("other")).unwrap();
        drop(claim);
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("link")).unwrap();
        let claim = OutputLock::of(&dir.path().join("link")).unwrap();
        assert!(OutputLock::of(&target).is_err());
        drop(claim);
        fs::remove_dir(&target).unwrap();
        drop(OutputLock::of(&target).unwrap());
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".out.lock"), "").unwrap();
        drop(OutputLock::of(&dir.path().join("out")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
