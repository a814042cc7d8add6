//! What smaller parts of layers cost, measured one by one: the table that per-layer plans are made
//! from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Identity;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::output::write_atomic;
use crate::spec::{DEPTH, ModelSpec, Sizes};

/// For every part of a layer the sizes it was tried at, and how far the whole model was then from
/// the one with nothing changed (Puzzle, arXiv 2411.19146: scores of replaced blocks).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockScores {
    /// The model they are of.
    pub model: Option<Identity>,
    /// Digest of the text.
    #[serde(default)]
    pub data: Option<String>,
    /// Tokens of it.
    #[serde(default)]
    pub n_tokens: u64,
    /// How every smaller part was reconstructed.
    #[serde(default)]
    pub reconstruct: Vec<String>,
    /// What was timed, where times were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timed: Option<Timed>,
    /// Part by part, from the first layer on.
    pub blocks: Vec<BlockChoices>,
}

/// A forward pass as its parts were timed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Sequences of the batch.
    pub batch_size: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// Milliseconds of what stands around the layers.
    pub rest_ms: f64,
}

/// The sizes of one part of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockChoices {
    /// Layer of the source.
    pub layer: usize,
    /// What is chosen: `mlp`, `attention`; `layer` for all of it.
    pub part: String,
    /// Milliseconds at full size, where parts were timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
    /// Smaller ones, largest first.
    pub choices: Vec<BlockChoice>,
}

/// One of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockChoice {
    /// By dim, `mlp.3`; a part whose dims are 0 is absent. Nothing where the layer goes whole.
    pub sizes: Sizes,
    /// Mean KL from the source to the model with this part so small, in nats per token; none of a
    /// model without logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Σ ‖h − h'‖² / Σ ‖h‖² of last hidden states.
    pub error: f64,
    /// Milliseconds of the part at this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
}

impl BlockChoice {
    /// Whether the layer goes as a whole.
    pub fn is_dropped(&self) -> bool {
        self.sizes.is_empty()
    }
}

impl BlockScores {
    /// Reads a file.
    ///
    /// # Errors
    /// `Recipe` where there is none, or another thing.
    pub fn load(path: &Path) -> Result<Self> {
        let at = path.display();
        let text = read_text(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::Recipe(format!(
                "{at}: no such block scores; `minitron blocks` writes them"
            )),
            std::io::ErrorKind::InvalidData => other_than_scores(path, &e),
            _ => Error::io(path, e),
        })?;
        serde_json::from_str(&text).map_err(|e| other_than_scores(path, &e))
    }

    /// Writes it.
    ///
    /// # Errors
    /// `Io` where it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Internal(format!("block scores as JSON: {e}")))?;
        write_atomic(path, text + "\n")
    }

    /// Takes the times of another table of the same model, such as one measured where the student
    /// will run.
    ///
    /// # Errors
    /// `Recipe` where it has no times, or not of all parts and sizes.
    pub fn take_times(&mut self, other: &BlockScores) -> Result<()> {
        let no_times = |what: String| {
            Error::Recipe(format!(
                "times: {what} has none; measure it with `minitron blocks --time`"
            ))
        };
        let timed = other.timed.clone();
        self.timed = Some(timed.ok_or_else(|| no_times("the table".into()))?);
        for block in &mut self.blocks {
            let what = || format!("layer {}, {}", block.layer, block.part);
            let is_same =
                |found: &&BlockChoices| found.layer == block.layer && found.part == block.part;
            let found = other.blocks.iter().find(is_same);
            let found = found.ok_or_else(|| no_times(what()))?;
            block.ms = Some(found.ms.ok_or_else(|| no_times(what()))?);
            for choice in block
                .choices
                .iter_mut()
                .filter(|choice| !choice.is_dropped())
            {
                let same = found
                    .choices
                    .iter()
                    .find(|other| other.sizes == choice.sizes);
                let ms = same.and_then(|same| same.ms);
                choice.ms = Some(ms.ok_or_else(|| no_times(format!("{:?}", choice.sizes)))?);
            }
        }
        Ok(())
    }

    /// Compares layers, dims and numbers with a model.
    ///
    /// # Errors
    /// `Recipe` naming what does not fit.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let unfit = |block: &BlockChoices, why: String| {
            let (layer, part) = (block.layer, &block.part);
            Err(Error::Recipe(format!(
                "block scores of layer {layer}, {part}: {why}; `minitron blocks` measures this \
                 model"
            )))
        };
        for block in &self.blocks {
            if block.layer >= spec.n_layers() {
                let n = spec.n_layers();
                return unfit(block, format!("the model has {n} layers"));
            }
            for choice in &block.choices {
                let numbers = choice.kl.into_iter().chain(choice.ms).chain(block.ms);
                if let Some(number) = numbers.chain([choice.error]).find(|x| !x.is_finite()) {
                    return unfit(block, format!("expected finite numbers, got {number}"));
                }
                if choice.is_dropped() && !spec.dims.contains_key(DEPTH) {
                    return unfit(block, "its layers cannot be dropped".into());
                }
                for (name, &size) in &choice.sizes {
                    let full = spec.dims.get(name).map(|dim| dim.size);
                    if full.is_none_or(|full| size > full) {
                        return unfit(block, format!("`{name}` at {size}, the model has {full:?}"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn other_than_scores(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let path = path.display();
    Error::Recipe(format!(
        "{path}: expected block scores, as `minitron blocks` writes them: {why}"
    ))
}
