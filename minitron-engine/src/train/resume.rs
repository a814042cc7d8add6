//! States that a run continues from: weights, moments, counts. Each is written whole or not at all,
//! and older ones go only when a newer one is durable:
//! `checkpoint/step-00000100/{state.json,state.safetensors}`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::held_out::Best;
use super::optimizer::AdamW;
use super::rate::StartRate;
use super::state_files;
use crate::data::Cursor;
use crate::difference::differing_keys;
use crate::ranks::Ranks;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::output::{OutputDir, remove_atomic, sync_dir, write_atomic};
use minitron_core::progress::Progress;

const DIR: &str = "checkpoint";
const STEP: &str = "step-";
const STATE: &str = "state.json";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub n_tokens: u64,
    /// Steps among them that changed nothing: loss or gradient was not finite, or nothing was
    /// predicted.
    pub n_skipped: u64,
    /// Those of them since the last update whose loss or gradient was not finite.
    pub n_skipped_in_row: u64,
    /// Seconds that the run has taken, interruptions left out.
    pub elapsed_s: f64,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// What the learning rate follows from, where it was not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_at_start: Option<f64>,
    /// Digest of all that decides the result: settings, losses, data, models.
    pub identity: serde_json::Value,
    /// Bytes of metrics.jsonl at this step; later ones are cut off on resume.
    pub metrics_len: u64,
    /// Place in the data.
    pub data: Cursor,
    /// How many ranks kept a part of the moments each; those before had all of them.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub n_shards: usize,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

impl State {
    /// Before the first step.
    pub fn start(identity: serde_json::Value, data: Cursor) -> Self {
        State {
            step: 0,
            n_tokens: 0,
            n_skipped: 0,
            n_skipped_in_row: 0,
            elapsed_s: 0.0,
            best: None,
            kl_at_start: None,
            identity,
            metrics_len: 0,
            data,
            n_shards: 1,
        }
    }

    /// One more step is done. One without anything to learn from is no sign of divergence.
    pub fn count(&mut self, step: u64, n_tokens: u64, (is_applied, is_empty): (bool, bool)) {
        (self.step, self.n_tokens) = (step, n_tokens);
        self.n_skipped += u64::from(!is_applied);
        self.n_skipped_in_row = match (is_applied, is_empty) {
            (true, _) => 0,
            (false, true) => self.n_skipped_in_row,
            (false, false) => self.n_skipped_in_row + 1,
        };
    }
}

fn dir(out_dir: &Path) -> PathBuf {
    out_dir.join(DIR)
}

/// The folder of the state after a step.
pub(super) fn step_dir(out_dir: &Path, step: u64) -> PathBuf {
    dir(out_dir).join(format!("{STEP}{step:08}"))
}

/// Steps that states lie of, whole or not, newest first.
fn steps(out_dir: &Path) -> Result<Vec<u64>> {
    let dir = dir(out_dir);
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let names = names_in(&dir)?;
    let mut steps: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_prefix(STEP)?.parse().ok())
        .collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).at_path(dir)?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect())
}

/// The newest step that a state lies of.
pub(super) fn newest(out_dir: &Path) -> Option<u64> {
    steps(out_dir).ok()?.first().copied()
}

/// Whether an earlier run left a state in `out_dir`.
pub fn has_state(out_dir: &Path) -> bool {
    newest(out_dir).is_some()
}

/// Writes a state, then removes all but the newest `keep` and the best one's. The first rank begins
/// the folder and gives it its place; where each keeps a part of the state, each writes it.
pub(super) fn save(
    out_dir: &Path,
    state: &State,
    optimizer: &AdamW,
    keep: usize,
    ranks: Ranks,
) -> Result<()> {
    let _span =
        tracing::info_span!("save state", path = %out_dir.display(), step = state.step).entered();
    let shard = optimizer.shard();
    if shard.is_whole() && !ranks.is_first() {
        return Ok(());
    }
    let ranks = match shard.is_whole() {
        true => Ranks::alone(),
        false => ranks,
    };
    let target = step_dir(out_dir, state.step);
    let mut output = None;
    ranks.first(|| {
        output = Some(begin(out_dir, &target)?);
        Ok(())
    })?;
    let part = OutputDir::part_of(&target)?;
    ranks.all(state_files::write(&part, shard, &optimizer.to_source()?))?;
    let (_, n_shards) = shard.place();
    let state = State {
        n_shards,
        ..state.clone()
    };
    ranks.first(|| match output {
        Some(output) => finish(out_dir, &state, output, keep),
        None => Ok(()),
    })
}

fn begin(out_dir: &Path, target: &Path) -> Result<OutputDir> {
    let parent = dir(out_dir);
    if !parent.is_dir() {
        fs::create_dir_all(&parent).at_path(&parent)?;
        sync_dir(out_dir)?;
    }
    // One of this step that could not be read: the run would not have come here otherwise.
    remove_atomic(target)?;
    OutputDir::create(target, true)
}

fn finish(out_dir: &Path, state: &State, output: OutputDir, keep: usize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(state).map_err(|e| Error::Internal(format!("state: {e}")))?;
    let path = output.path().join(STATE);
    write_atomic(&path, text)?;
    output.commit()?;
    let best = state.best.map(|best| best.step);
    // Those of later steps could not be read either.
    let (older, unreadable): (Vec<u64>, Vec<u64>) = steps(out_dir)?
        .into_iter()
        .partition(|&step| step <= state.step);
    let outdated = older
        .into_iter()
        .skip(keep)
        .filter(|&step| Some(step) != best);
    outdated
        .chain(unreadable)
        .try_for_each(|step| remove_atomic(&step_dir(out_dir, step)))
}

/// The place in the data that an interrupted run reached, so that they can be opened there at once;
/// whether the run may go on is another question.
pub fn saved_cursor(out_dir: &Path) -> Option<Cursor> {
    let text = read_text(&step_dir(out_dir, newest(out_dir)?).join(STATE)).ok()?;
    serde_json::from_str(&text)
        .ok()
        .map(|state: State| state.data)
}

/// The learning rate that an interrupted run began with, of the newest state that can be read.
pub fn saved_rate(out_dir: &Path) -> Option<StartRate> {
    steps(out_dir).ok()?.into_iter().find_map(|step| {
        let text = read_text(&step_dir(out_dir, step).join(STATE)).ok()?;
        let state: State = serde_json::from_str(&text).ok()?;
        let lr = state.identity["settings"]["lr"].as_f64()?;
        (lr.is_finite() && lr > 0.0).then_some(StartRate {
            lr,
            kl: state.kl_at_start,
        })
    })
}

/// Restores the newest state that is whole; `None` where there is nothing to resume.
///
/// # Errors
/// `Recipe` naming what differs from the interrupted run; `Checkpoint` where states lie there and
/// none can be read.
pub(super) fn load(
    out_dir: &Path,
    identity: &serde_json::Value,
    optimizer: &mut AdamW,
    progress: &dyn Progress,
) -> Result<Option<State>> {
    let steps = steps(out_dir)?;
    let mut damage = None;
    for &step in &steps {
        match read(&step_dir(out_dir, step), step, identity, optimizer) {
            Ok(state) => return Ok(Some(state)),
            Err(error) if is_damage(&error) => {
                progress.warn(&format!(
                    "resume: this checkpoint is damaged and left out, {error}"
                ));
                damage = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match damage {
        None => Ok(None),
        Some(error) => {
            let message = format!(
                "none of {} checkpoints can be read ({error}); remove it to start over",
                steps.len()
            );
            Err(Error::checkpoint(dir(out_dir), message))
        }
    }
}

/// Takes away what an interrupted write left: beginnings and remains of states, whose names begin
/// with a dot.
pub(super) fn sweep(out_dir: &Path) -> Result<()> {
    let dir = dir(out_dir);
    let rest = format!(".{STEP}");
    for name in names_in(&dir)? {
        if name.starts_with(&rest) {
            let path = dir.join(name);
            fs::remove_dir_all(&path).at_path(&path)?;
        }
    }
    Ok(())
}

/// Takes all states of another run away.
pub fn clear(out_dir: &Path) -> Result<()> {
    remove_atomic(&dir(out_dir))
}

fn read(
    dir: &Path,
    step: u64,
    identity: &serde_json::Value,
    optimizer: &mut AdamW,
) -> Result<State> {
    let path = dir.join(STATE);
    let text = read_text(&path).at_path(&path)?;
    let state: State = serde_json::from_str(&text)
        .map_err(|e| Error::checkpoint(&path, format!("unreadable: {e}")))?;
    if state.step != step || state.n_skipped > step {
        return Err(Error::checkpoint(
            &path,
            format!("expected step {step}, got {}", state.step),
        ));
    }
    let (then, now) = (without_names(&state.identity), without_names(identity));
    if then != now {
        let differing = named(differing_keys(&then, &now), &state.identity, identity).join(", ");
        let message = format!(
            "resume: {} was written with other settings ({differing}); use the same, or start over \
             with --force and without --resume",
            path.display()
        );
        return Err(Error::Recipe(message));
    }
    let tensors = state_files::open(dir, state.n_shards)?;
    optimizer.restore(tensors.as_ref(), step - state.n_skipped)?;
    Ok(state)
}

/// Whether a state is not whole, rather than out of reach or another run's.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Checkpoint { .. } => true,
        Error::Io { source, .. } => matches!(
            source.kind(),
            ErrorKind::NotFound
                | ErrorKind::UnexpectedEof
                | ErrorKind::InvalidData
                | ErrorKind::FileTooLarge
        ),
        _ => false,
    }
}

/// Where an identity names the models behind its digests, for messages alone.
const NAMES: &str = "names";

pub(crate) fn without_names(identity: &serde_json::Value) -> serde_json::Value {
    let mut identity = identity.clone();
    if let Some(inputs) = identity
        .get_mut("inputs")
        .and_then(serde_json::Value::as_object_mut)
    {
        inputs.shift_remove(NAMES);
    }
    identity
}

/// `inputs.teacher` becomes "inputs.teacher: `base` then, `chat` now" where names are known.
fn named(keys: Vec<String>, old: &serde_json::Value, new: &serde_json::Value) -> Vec<String> {
    let mut named = Vec::with_capacity(keys.len());
    for key in keys {
        named.push(match (model_name(old, &key), model_name(new, &key)) {
            (Some(then), Some(now)) => format!("{key}: `{then}` then, `{now}` now"),
            _ => key,
        });
    }
    named
}

/// The model behind the digest at a key of an identity.
fn model_name<'i>(identity: &'i serde_json::Value, key: &str) -> Option<&'i str> {
    let input = key.strip_prefix("inputs.")?;
    identity["inputs"][NAMES][input].as_str()
}
