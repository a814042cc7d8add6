//! Layer by layer: students that are smaller in one part, reconstructed there, and their distances.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::info_span;

use super::choices::{LayerPart, choices};
use super::options::BlocksOptions;
use crate::jobs::context::Context;
use crate::jobs::prune::reconstruction::treat;
use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::output::write_atomic;
use minitron_core::plan::{BlockChoice, BlockChoices, Rankings, Space, Timed};
use minitron_core::reconstruct::{LayerTrials, ReconstructInputs, Trial};
use minitron_core::spec::ModelSpec;

/// The measuring of a model.
pub(super) struct Measured<'a> {
    pub context: &'a Context<'a>,
    pub options: &'a BlocksOptions,
    pub space: &'a Space,
    pub rankings: &'a Rankings,
    pub reconstructions: &'a [Box<dyn Reconstruction>],
}

impl Measured<'_> {
    /// All layers, beginning after those that were measured before, and what was timed.
    pub fn all(
        &self,
        inputs: ReconstructInputs,
        mut partial: Partial,
    ) -> Result<(Vec<BlockChoices>, Option<Timed>)> {
        let n_layers = inputs.spec.n_layers();
        self.check(inputs.spec)?;
        let mut trials = LayerTrials::start(inputs)?;
        let progress = self.context.progress;
        progress.start("blocks, layers", n_layers as u64);
        for layer in 0..n_layers {
            let _span = info_span!("layer", layer).entered();
            if layer >= partial.n_layers {
                partial.blocks.extend(self.layer(&trials)?);
                partial.n_layers = layer + 1;
                self.context.ranks.first(|| partial.save())?;
            }
            if layer + 1 < n_layers {
                trials.advance()?;
            }
            progress.advance(1, "");
        }
        progress.finish();
        let timed = self.options.time.then(|| timed(&trials)).transpose()?;
        Ok((partial.blocks, timed))
    }

    /// Refuses a model whose layers are as they are.
    fn check(&self, spec: &ModelSpec) -> Result<()> {
        let shares = &self.options.shares;
        let mut layers = 0..spec.n_layers();
        if layers.any(|layer| !choices(spec, self.space, layer, shares).is_empty()) {
            return Ok(());
        }
        let way = match spec.may_be_apart() {
            true => "; --layers-apart describes it so that layers may differ",
            false => "",
        };
        Err(Error::Recipe(format!(
            "blocks: nothing of this model may be smaller in one layer than in another at these \
             shares: its config has one number for all layers, and layers go at share 0 alone{way}"
        )))
    }

    /// The layer whose turn it is.
    fn layer(&self, trials: &LayerTrials) -> Result<Vec<BlockChoices>> {
        let (spec, layer) = (trials.spec(), trials.layer());
        let mut parts = choices(spec, self.space, layer, &self.options.shares);
        let mut tried = Vec::new();
        for LayerPart { number, block } in &mut parts {
            if self.options.time {
                block.ms = Some(match number {
                    Some(number) => trials.time_part(None, *number)?,
                    None => whole_layer(trials)?,
                });
            }
            for choice in &mut block.choices {
                let place = tried.len();
                let trial = match choice.is_dropped() {
                    true => trials.without(place)?,
                    false => self.smaller(trials, choice, (*number, place))?,
                };
                tried.push(trial);
            }
        }
        let distances = trials.judge(tried)?;
        let all = parts.iter_mut().flat_map(|part| &mut part.block.choices);
        for (choice, distance) in all.zip(distances) {
            (choice.kl, choice.error) = (distance.kl, distance.error);
        }
        for LayerPart { block, .. } in &mut parts {
            self.leave_out(block);
        }
        Ok(parts.into_iter().map(|part| part.block).collect())
    }

    /// Sizes at which the model's numbers overflow are none to choose.
    fn leave_out(&self, block: &mut BlockChoices) {
        let is_finite =
            |choice: &BlockChoice| choice.error.is_finite() && choice.kl.is_none_or(f64::is_finite);
        for choice in block.choices.iter().filter(|choice| !is_finite(choice)) {
            let (layer, part) = (block.layer, &block.part);
            let message = format!(
                "layer {layer}, {part}: at {:?} the model's numbers are not finite; left out",
                choice.sizes
            );
            self.context.progress.warn(&message);
        }
        block.choices.retain(is_finite);
    }

    /// A student with one smaller part, reconstructed, and its time.
    fn smaller(
        &self,
        trials: &LayerTrials,
        choice: &mut BlockChoice,
        (number, place): (Option<usize>, usize),
    ) -> Result<Trial> {
        let plan = self
            .space
            .plan(&choice.sizes, self.rankings, trials.spec())?;
        let mut editor = trials.editor(plan)?;
        treat(self.reconstructions, &mut editor)?;
        if let Some(number) = number.filter(|_| self.options.time) {
            choice.ms = Some(trials.time_part(Some(&editor), number)?);
        }
        trials.through(&editor, place)
    }
}

fn whole_layer(trials: &LayerTrials) -> Result<f64> {
    let n_parts = trials.spec().places(trials.layer()).count();
    (0..n_parts).map(|part| trials.time_part(None, part)).sum()
}

/// What was timed, and what stands behind the layers.
fn timed(trials: &LayerTrials) -> Result<Timed> {
    let (batch_size, seq_len) = trials.timed_shape()?;
    Ok(Timed {
        batch_size,
        seq_len,
        rest_ms: trials.time_rest()?,
    })
}

/// What an interrupted measuring left beside its output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Partial {
    #[serde(skip)]
    path: PathBuf,
    identity: Value,
    n_layers: usize,
    blocks: Vec<BlockChoices>,
}

impl Partial {
    /// That of the same measuring, or nothing yet.
    pub fn open(out: &Path, identity: &Value) -> Self {
        let path = place(out);
        let text = read_text(&path).ok();
        let found = text.and_then(|text| serde_json::from_str::<Partial>(&text).ok());
        match found.filter(|found| found.identity == *identity) {
            Some(found) => Partial { path, ..found },
            None => Partial {
                path,
                identity: identity.clone(),
                n_layers: 0,
                blocks: Vec::new(),
            },
        }
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_string(self)
            .map_err(|e| Error::Internal(format!("block scores as JSON: {e}")))?;
        write_atomic(&self.path, text)
    }

    /// Takes it away.
    pub fn forget(out: &Path) -> Result<()> {
        let path = place(out);
        fs::remove_file(&path).at_path(&path)
    }
}

fn place(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.measured"))
}
