//! Output folders that appear whole or not at all: written beside their place, synced, then renamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// A folder being written under a temporary name; [`OutputDir::commit`] gives it its place.
///
/// Dropped without commit, it removes what it wrote and leaves the place as it was.
#[derive(Debug)]
pub struct OutputDir {
    target: PathBuf,
    part: PathBuf,
    replaced: PathBuf,
    committed: bool,
}

impl OutputDir {
    /// Starts a folder at `target`.
    ///
    /// # Errors
    /// `Recipe` when `target` exists and `force` is not set.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        Self::refuse_existing(target, force)?;
        let name = target
            .file_name()
            .ok_or_else(|| Error::Recipe(format!("`{}` cannot name an output folder", target.display())))?
            .to_string_lossy()
            .into_owned();
        let parent = parent_of(target);
        fs::create_dir_all(&parent).at_path(&parent)?;
        let part = parent.join(format!(".{name}.part"));
        let replaced = parent.join(format!(".{name}.old"));
        if part.exists() {
            fs::remove_dir_all(&part).at_path(&part)?;
        }
        fs::create_dir(&part).at_path(&part)?;
        Ok(OutputDir { target: target.to_path_buf(), part, replaced, committed: false })
    }

    /// The check of [`OutputDir::create`] alone, for failing before any work is done.
    ///
    /// # Errors
    /// `Recipe` when `target` exists and `force` is not set, or it is a folder that no command wrote.
    pub fn refuse_existing(target: &Path, force: bool) -> Result<()> {
        if !force && target.symlink_metadata().is_ok() {
            let message =
                format!("the output `{}` exists; give another name or --force to replace it", target.display());
            return Err(Error::Recipe(message));
        }
        if target.is_dir() && !is_ours(target)? {
            let message = format!("`{}` holds files, but no model or run", target.display());
            return Err(Error::Recipe(format!("{message}; --force does not replace it, remove it yourself")));
        }
        Ok(())
    }

    /// Refuses an output that is, or holds, one of the job's own inputs: replacing it would destroy them.
    pub fn refuse_inputs<'p>(target: &Path, inputs: impl IntoIterator<Item = &'p Path>) -> Result<()> {
        let Ok(target) = target.canonicalize() else { return Ok(()) };
        for input in inputs {
            if input.canonicalize().is_ok_and(|input| input.starts_with(&target)) {
                let message = format!("the output `{}` holds the input `{}`", target.display(), input.display());
                return Err(Error::Recipe(format!("{message}; give another name for the output")));
            }
        }
        Ok(())
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Syncs every file, then puts the folder in its place; a folder there before is removed last.
    pub fn commit(mut self) -> Result<()> {
        sync_tree(&self.part)?;
        if self.replaced.exists() {
            fs::remove_dir_all(&self.replaced).at_path(&self.replaced)?;
        }
        let had_old = self.target.symlink_metadata().is_ok();
        if had_old {
            fs::rename(&self.target, &self.replaced).at_path(&self.target)?;
        }
        fs::rename(&self.part, &self.target).at_path(&self.target)?;
        self.committed = true;
        sync_dir(&parent_of(&self.target))?;
        if had_old {
            remove_any(&self.replaced)?;
        }
        Ok(())
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}

/// Files of which every folder that a command writes has at least one, models aside.
const MARKS: [&str; 8] = [
    "scores.safetensors",
    "plan.json",
    "metrics.jsonl",
    "run.json",
    "state.json",
    "result.json",
    "search.json",
    "compare.json",
];

/// Whether a folder is empty or was written by a command.
fn is_ours(dir: &Path) -> Result<bool> {
    let is_empty = fs::read_dir(dir).at_path(dir)?.next().is_none();
    let is_model = dir.join("config.json").is_file()
        && ["model.safetensors", "model.safetensors.index.json"].iter().any(|weights| dir.join(weights).is_file());
    Ok(is_empty || is_model || MARKS.iter().any(|mark| dir.join(mark).is_file()))
}

fn remove_any(path: &Path) -> Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.at_path(path)
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at_path(dir)? {
        let path = entry.at_path(dir)?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).at_path(&path)?;
        }
    }
    sync_dir(dir)
}

/// Writes a text file whole or not at all: beside its place, synced, renamed.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.part"));
    fs::write(&part, text).at_path(&part)?;
    File::open(&part).and_then(|file| file.sync_all()).at_path(&part)?;
    fs::rename(&part, path).at_path(path)
}

/// Makes a folder's entries durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|f| f.sync_all()).at_path(dir)
}
