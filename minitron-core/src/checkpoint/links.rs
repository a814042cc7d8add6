//! Links in a model folder: what is read, hashed and copied to students is the folder's own.

use std::fs;
use std::path::Path;

use crate::error::{Error, IoContext, Result};

/// Endings of what is read from a model folder, or copied along.
const READ: [&str; 6] = ["json", "safetensors", "model", "txt", "jinja", "py"];

/// Refuses files of the folder that are links to a place outside it.
///
/// # Errors
/// `Checkpoint` naming the link.
pub fn refuse_outside(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at_path(dir)? {
        let entry = entry.at_path(dir)?;
        let path = entry.path();
        let is_read = path
            .extension()
            .is_some_and(|ending| READ.iter().any(|read| ending == *read));
        if entry.file_type().at_path(&path)?.is_symlink()
            && (is_read || is_module(&entry.file_name()))
        {
            refuse_link_outside(dir, &path)?;
        }
    }
    Ok(())
}

/// Whether a folder is called as sentence-transformers calls those of modules: `1_Pooling`.
fn is_module(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy()
        .split_once('_')
        .is_some_and(|(idx, _)| idx.parse::<u32>().is_ok())
}

/// Refuses a path in a model folder that leads to a place outside it: someone else's folder could
/// have a secret of this machine read, and copied into a student that is given away. The hub's
/// cache keeps `snapshots/COMMIT/NAME` as a link to `blobs/DIGEST` of the same model; that is
/// inside. The folder itself may be a link. One that leads nowhere is as good as absent.
///
/// # Errors
/// `Checkpoint` naming the link.
pub fn refuse_link_outside(dir: &Path, path: &Path) -> Result<()> {
    let whole = dir.canonicalize().at_path(dir)?;
    let cache = whole
        .parent()
        .filter(|parent| parent.ends_with("snapshots"))
        .and_then(Path::parent);
    let blobs = cache.map(|cache| cache.join("blobs"));
    let Ok(target) = path.canonicalize() else {
        return Ok(());
    };
    if target.starts_with(&whole) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    let message = format!(
        "a link to {}, which is outside the model folder; copy the file, or link the whole folder",
        target.display()
    );
    Err(Error::checkpoint(path, message))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_in_the_folder_or_in_the_blobs_of_the_hubs_cache() {
        let place = tempfile::tempdir().unwrap();
        let (model, snapshot) = (
            place.path().join("model"),
            place.path().join("models--a--b/snapshots/0a"),
        );
        let blobs = place.path().join("models--a--b/blobs");
        [&model, &snapshot, &blobs]
            .iter()
            .for_each(|dir| fs::create_dir_all(dir).unwrap());
        for file in [
            model.join("real.json"),
            blobs.join("0b"),
            place.path().join("secret"),
        ] {
            fs::write(file, "{}").unwrap();
        }
        symlink("real.json", model.join("config.json")).unwrap();
        symlink("../../blobs/0b", snapshot.join("config.json")).unwrap();
        symlink(place.path().join("nowhere"), model.join("merges.txt")).unwrap();
        symlink(place.path(), model.join("logs")).unwrap();
        symlink(&model, place.path().join("linked")).unwrap();
        for dir in [&model, &snapshot, &place.path().join("linked")] {
            refuse_outside(dir).unwrap();
        }
        // Neither another folder's blobs, nor those of a folder that is no snapshot.
        symlink(blobs.join("0b"), model.join("tokenizer.json")).unwrap();
        symlink("../../../secret", snapshot.join("tokenizer_config.json")).unwrap();
        for (dir, name) in [
            (&model, "tokenizer.json"),
            (&snapshot, "tokenizer_config.json"),
        ] {
            let error = refuse_outside(dir).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("outside the model folder"),
                "{error}"
            );
        }
        fs::remove_file(model.join("tokenizer.json")).unwrap();
        symlink(place.path(), model.join("1_Pooling")).unwrap();
        assert!(
            refuse_outside(&model)
                .unwrap_err()
                .to_string()
                .contains("1_Pooling")
        );
    }
}
