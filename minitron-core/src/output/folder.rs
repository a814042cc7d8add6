//! Output folders that appear whole or not at all: written beside their place, synced, then
//! exchanged with what is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::atomic::{parent_of, remove_any, sibling, sync_dir, sync_tree};
use crate::error::{Error, IoContext, Result};

/// A folder being written under a temporary name; [`OutputDir::commit`] gives it its place.
///
/// Dropped without commit, it removes what it wrote and leaves the place as it was.
#[derive(Debug)]
pub struct OutputDir {
    target: PathBuf,
    part: PathBuf,
    replaced: PathBuf,
}

impl OutputDir {
    /// Starts a folder at `target`.
    ///
    /// # Errors
    /// `Recipe` when `target` exists and `force` is not set.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        let (part, replaced) = (sibling(target, "part")?, sibling(target, "old")?);
        if replaced.exists() && target.symlink_metadata().is_err() {
            // A process ended between the two moves of a file system that cannot exchange.
            fs::rename(&replaced, target).at_path(target)?;
        }
        Self::refuse_existing(target, force)?;
        if target.is_file() {
            let message = format!(
                "`{}` is a file, where a folder would be written",
                target.display()
            );
            return Err(Error::Recipe(format!(
                "{message}; give another name, or remove it yourself"
            )));
        }
        let parent = parent_of(target);
        fs::create_dir_all(&parent).at_path(&parent)?;
        remove_any(&part).and_then(|()| remove_any(&replaced))?;
        fs::create_dir(&part).at_path(&part)?;
        Ok(OutputDir {
            target: target.to_path_buf(),
            part,
            replaced,
        })
    }

    /// The check of [`OutputDir::create`] alone, for failing before any work is done.
    ///
    /// # Errors
    /// `Recipe` when `target` exists and `force` is not set, or it is a folder that no command
    /// wrote.
    pub fn refuse_existing(target: &Path, force: bool) -> Result<()> {
        if !force && target.symlink_metadata().is_ok() {
            let message = format!(
                "the output `{}` exists; give another name or --force to replace it",
                target.display()
            );
            return Err(Error::Recipe(message));
        }
        if target.exists() && !target.is_dir() && !target.is_file() {
            let message = format!(
                "the output `{}` is a device or a pipe; give another name",
                target.display()
            );
            return Err(Error::Recipe(message));
        }
        if target.is_dir() && !is_ours(target)? {
            let message = format!("`{}` holds files, but no model or run", target.display());
            return Err(Error::Recipe(format!(
                "{message}; --force does not replace it, remove it yourself"
            )));
        }
        Ok(())
    }

    /// Refuses an output that is, or holds, one of the job's own inputs: replacing it would destroy
    /// them.
    pub fn refuse_inputs<'p>(
        target: &Path,
        inputs: impl IntoIterator<Item = &'p Path>,
    ) -> Result<()> {
        let Ok(target) = target.canonicalize() else {
            return Ok(());
        };
        for input in inputs {
            if input
                .canonicalize()
                .is_ok_and(|input| input.starts_with(&target))
            {
                let message = format!(
                    "the output `{}` holds the input `{}`",
                    target.display(),
                    input.display()
                );
                return Err(Error::Recipe(format!(
                    "{message}; give another name for the output"
                )));
            }
        }
        Ok(())
    }

    /// Where a folder at `target` is written meanwhile, for processes that write to it together.
    ///
    /// # Errors
    /// As [`OutputDir::create`], for a place without a name.
    pub fn part_of(target: &Path) -> Result<PathBuf> {
        sibling(target, "part")
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Syncs every file, then puts the folder in its place; what was there is removed last.
    pub fn commit(self) -> Result<()> {
        sync_tree(&self.part)?;
        if self.target.symlink_metadata().is_err() {
            fs::rename(&self.part, &self.target).at_path(&self.target)?;
            return sync_dir(&parent_of(&self.target));
        }
        exchange(&self.part, &self.target, &self.replaced).at_path(&self.target)?;
        sync_dir(&parent_of(&self.target))
        // Dropped, it removes what was there before.
    }
}

/// Puts `new` in the place of `old`, in one step where the file system can; what was there is then
/// at `new` or at `aside`.
fn exchange(new: &Path, old: &Path, aside: &Path) -> io::Result<()> {
    if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    fs::rename(old, aside)?;
    fs::rename(new, old).inspect_err(|_| _ = fs::rename(aside, old))
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        let _ = remove_any(&self.part);
        // Where it could not be moved back, it is all that there is.
        if self.target.symlink_metadata().is_ok() {
            let _ = remove_any(&self.replaced);
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
        && ["model.safetensors", "model.safetensors.index.json"]
            .iter()
            .any(|weights| dir.join(weights).is_file());
    Ok(is_empty || is_model || MARKS.iter().any(|mark| dir.join(mark).is_file()))
}
