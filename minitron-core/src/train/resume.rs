//! The state a run continues from: weights, moments, step; written whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use crate::checkpoint::{OutputDir, Reader, write_tensors};
use crate::data::Cursor;
use crate::error::{Error, IoContext, Result};

const DIR: &str = "checkpoint";
const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub n_tokens: u64,
    /// Digest of all that decides the result: settings, losses, data, models.
    pub identity: serde_json::Value,
    /// Bytes of metrics.jsonl at this step; later ones are cut off on resume.
    pub metrics_len: u64,
    /// Place in the data.
    pub data: Cursor,
}

/// The folder of a run's state.
pub(super) fn dir(out_dir: &Path) -> PathBuf {
    out_dir.join(DIR)
}

pub(super) fn save(out_dir: &Path, state: &State, optimizer: &AdamW) -> Result<()> {
    let output = OutputDir::create(&dir(out_dir), true)?;
    write_tensors(&output.path().join(TENSORS), &optimizer.to_source()?)?;
    let text = serde_json::to_string_pretty(state).map_err(|e| Error::Internal(format!("state: {e}")))?;
    let path = output.path().join(STATE);
    fs::write(&path, text).at_path(&path)?;
    output.commit()
}

/// Whether an earlier run left a state in `out_dir`; one that was being replaced when the process ended counts.
pub fn has_state(out_dir: &Path) -> bool {
    let replaced = out_dir.join(format!(".{DIR}.old"));
    if !dir(out_dir).exists() && replaced.join(STATE).is_file() {
        return fs::rename(&replaced, dir(out_dir)).is_ok();
    }
    dir(out_dir).join(STATE).is_file()
}

/// The place in the data that an interrupted run reached, so that they can be opened there at once; whether the run may go
/// on is another question.
pub fn saved_cursor(out_dir: &Path) -> Option<Cursor> {
    let text = has_state(out_dir).then(|| fs::read_to_string(dir(out_dir).join(STATE)).ok()).flatten()?;
    serde_json::from_str(&text).ok().map(|state: State| state.data)
}

/// Restores the optimiser and its weights; `None` where there is nothing to resume.
///
/// # Errors
/// `Recipe` naming what differs from the interrupted run.
pub(super) fn load(out_dir: &Path, identity: &serde_json::Value, optimizer: &mut AdamW) -> Result<Option<State>> {
    let path = dir(out_dir).join(STATE);
    if !has_state(out_dir) {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).at_path(&path)?;
    let state: State = serde_json::from_str(&text).map_err(|e| Error::checkpoint(&path, format!("unreadable: {e}")))?;
    if &state.identity != identity {
        let differing = differing_keys(&state.identity, identity).join(", ");
        let message = format!(
            "resume: {} was written with other settings ({differing}); use the same, or --force",
            path.display()
        );
        return Err(Error::Recipe(message));
    }
    optimizer.restore(&Reader::open_file(&dir(out_dir).join(TENSORS))?, state.step)?;
    Ok(Some(state))
}

/// Paths of the values that differ: `settings.lr`.
fn differing_keys(old: &serde_json::Value, new: &serde_json::Value) -> Vec<String> {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return Vec::new() };
    let mut keys = Vec::new();
    for (key, value) in new.iter().filter(|(key, value)| old.get(*key) != Some(value)) {
        let inner = old.get(key).map_or_else(Vec::new, |old| differing_keys(old, value));
        if inner.is_empty() {
            keys.push(key.clone());
        }
        keys.extend(inner.into_iter().map(|inner| format!("{key}.{inner}")));
    }
    keys
}
