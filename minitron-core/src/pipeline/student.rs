//! Trained students as model folders.

use std::fs;
use std::path::Path;

use crate::checkpoint::{Config, OutputDir, WriteOptions, copy_tokenizer, remove_whole, sync_dir, write_model};
use crate::error::{IoContext, Result};
use crate::model::Transformer;
use crate::train::Masters;

/// What a student's folder is made from.
pub(super) struct StudentFolder<'a> {
    pub config: &'a Config,
    /// Where training started from: tokenizer and plan come from there.
    pub dir: &'a Path,
    /// Where the tokenizer comes from instead, where there is none.
    pub tokenizer_dir: Option<&'a Path>,
    /// Whether it started from weights, rather than at random.
    pub is_trained: bool,
    pub student: &'a Transformer,
}

impl StudentFolder<'_> {
    /// A folder of its own, whole or not at all; one there before is replaced.
    pub fn write(&self, masters: &Masters, target: &Path) -> Result<()> {
        let output = OutputDir::create(target, true)?;
        let source = self.student.to_source(masters)?;
        write_model(output.path(), self.config, &source, Some(self.dir), WriteOptions::default())?;
        if let Some(from) = self.tokenizer_dir {
            copy_tokenizer(from, output.path())?;
        }
        let plan = self.dir.join("plan.json");
        if plan.is_file() && self.is_trained {
            fs::copy(&plan, output.path().join("plan.json")).at_path(&plan)?;
        }
        output.commit()
    }

    /// Beside the metrics: whole in a folder of its own first, then file by file with config.json last, so that a folder
    /// that has one has everything.
    pub fn write_among(&self, masters: &Masters, out_dir: &Path) -> Result<()> {
        let staged = out_dir.join("model");
        if staged.exists() {
            // Half moved out when an earlier process ended.
            fs::remove_dir_all(&staged).at_path(&staged)?;
        }
        self.write(masters, &staged)?;
        let mut names: Vec<_> = fs::read_dir(&staged)
            .at_path(&staged)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()
            .at_path(&staged)?;
        names.sort_by_key(|name| name == "config.json");
        remove_model(out_dir)?;
        for name in names {
            let target = out_dir.join(&name);
            if target.is_dir() {
                fs::remove_dir_all(&target).at_path(&target)?;
            }
            fs::rename(staged.join(&name), &target).at_path(&target)?;
        }
        fs::remove_dir(&staged).at_path(&staged)?;
        sync_dir(out_dir)
    }
}

/// Takes an earlier model of this run away, config.json first: old shards must not stand beside new ones.
fn remove_model(out_dir: &Path) -> Result<()> {
    let mut stale = vec![out_dir.join("config.json")];
    let entries = fs::read_dir(out_dir).at_path(out_dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_weights = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
    };
    stale.extend(entries.filter(is_weights));
    for path in stale.iter().filter(|path| path.is_file()) {
        fs::remove_file(path).at_path(path)?;
    }
    Ok(())
}

/// `--force`: what lies at the output goes.
pub(super) fn clear(dir: &Path) -> Result<()> {
    remove_whole(dir)
}
