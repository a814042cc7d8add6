//! Files that appear whole or not at all: written beside their place, synced, renamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// Replaces or makes a file: `write` fills one beside its place, which then takes it. Where
/// anything fails, what was at the place stays.
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = sibling(path, "part")?;
    let done = write(&part)
        .and_then(|()| {
            File::open(&part)
                .and_then(|file| file.sync_all())
                .at_path(&part)
        })
        .and_then(|()| fs::rename(&part, path).at_path(path));
    if done.is_err() {
        let _ = fs::remove_file(&part);
    }
    done.and_then(|()| sync_dir(&parent_of(path)))
}

/// Replaces or makes a file with this content.
pub fn write_atomic(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    replace_file(path, |part| fs::write(part, content).at_path(part))
}

/// Takes a file or folder away, under another name first, so that no half of it is ever found.
pub fn remove_atomic(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let leaving = sibling(path, "gone")?;
    remove_any(&leaving)?;
    fs::rename(path, &leaving).at_path(path)?;
    remove_any(&leaving)
}

/// Takes a file or folder away where there is one.
pub(super) fn remove_any(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path).at_path(path),
        Ok(_) => fs::remove_file(path).at_path(path),
    }
}

/// Makes a folder's entries durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|f| f.sync_all()).at_path(dir)
}

/// Makes everything in a folder durable.
pub fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at_path(dir)? {
        let path = entry.at_path(dir)?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|f| f.sync_all())
                .at_path(&path)?;
        }
    }
    sync_dir(dir)
}

/// A place in the same folder that nobody else writes to: `.NAME.ENDING`.
pub(super) fn sibling(path: &Path, ending: &str) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::Recipe(format!("`{}` cannot name an output", path.display())))?
        .to_string_lossy();
    Ok(parent_of(path).join(format!(".{name}.{ending}")))
}

pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_one_before_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, "old").unwrap();
        let refused = replace_file(&path, |part| {
            fs::write(part, "ne").at_path(part)?;
            Err(Error::Data("no more".into()))
        });
        assert_eq!(refused.unwrap_err().to_string(), "data: no more");
        assert_eq!(
            (
                fs::read(&path).unwrap(),
                fs::read_dir(dir.path()).unwrap().count()
            ),
            (b"old".to_vec(), 1)
        );
        write_atomic(&path, "new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
