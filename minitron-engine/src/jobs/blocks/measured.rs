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
use minitron_core::plan::{BlockChoices, Rankings, Space, Timed};
use minitron_core::reconstruct::{LayerTrials, Trial};

/// The measuring of a model.
pub(super) struct Measured<'a, 't> {
    pub context: &'a Context<'a>,
    pub options: &'a BlocksOptions,
    pub space: &'a Space,
    pub rankings: &'a Rankings,
    pub reconstructions: &'a [Box<dyn Reconstruction>],
    pub trials: LayerTrials<'t>,
}

impl Measured<'_, '_> {
    /// All layers, beginning after those that were measured before.
    pub fn all(&mut self, mut partial: Partial) -> Result<Vec<BlockChoices>> {
        let n_layers = self.context_layers();
        let progress = self.context.progress;
        progress.start("blocks, layers", n_layers as u64);
        for layer in 0..n_layers {
            let _span = info_span!("layer", layer).entered();
            if layer >= partial.n_layers {
                let found = self.layer(layer)?;
                partial.blocks.extend(found);
                partial.n_layers = layer + 1;
                self.context.ranks.first(|| partial.save())?;
            }
            if layer + 1 < n_layers {
                self.trials.advance()?;
            }
            progress.advance(1, "");
        }
        progress.finish();
        if partial.blocks.is_empty() {
            return Err(Error::Recipe(
                "blocks: nothing of this model may be smaller in one layer than in another: its \
                 config has one number for all layers, and no layer may go"
                    .into(),
            ));
        }
        Ok(partial.blocks)
    }

    fn context_layers(&self) -> usize {
        self.trials.spec().n_layers()
    }

    fn layer(&self, layer: usize) -> Result<Vec<BlockChoices>> {
        let spec = self.trials.spec();
        let mut parts = choices(spec, self.space, layer, &self.options.shares);
        let mut trials = Vec::new();
        for LayerPart { number, block } in &mut parts {
            if self.options.time {
                block.ms = Some(match number {
                    Some(number) => self.trials.time_part(None, *number)?,
                    None => self.whole_layer(layer)?,
                });
            }
            for choice in &mut block.choices {
                let place = trials.len();
                let (trial, ms) = match choice.is_dropped() {
                    true => (self.trials.without(place)?, None),
                    false => self.smaller(&choice.sizes, *number, place)?,
                };
                choice.ms = ms;
                trials.push(trial);
            }
        }
        let distances = self.trials.judge(trials)?;
        let all = parts.iter_mut().flat_map(|part| &mut part.block.choices);
        for (choice, distance) in all.zip(distances) {
            (choice.kl, choice.error) = (distance.kl, distance.error);
        }
        Ok(parts.into_iter().map(|part| part.block).collect())
    }

    fn smaller(
        &self,
        sizes: &minitron_core::spec::Sizes,
        number: Option<usize>,
        place: usize,
    ) -> Result<(Trial, Option<f64>)> {
        let plan = self.space.plan(sizes, self.rankings, self.trials.spec())?;
        let mut editor = self.trials.editor(plan)?;
        treat(self.reconstructions, &mut editor)?;
        let trial = self.trials.through(&editor, place)?;
        let ms = match number.filter(|_| self.options.time) {
            Some(number) => Some(self.trials.time_part(Some(&editor), number)?),
            None => None,
        };
        Ok((trial, ms))
    }

    fn whole_layer(&self, layer: usize) -> Result<f64> {
        let n_parts = self.trials.spec().sublayers(layer).count();
        let parts = (0..n_parts).map(|part| self.trials.time_part(None, part));
        parts.sum()
    }

    /// What was timed, and what stands around the layers.
    pub fn timed(&self) -> Result<Option<Timed>> {
        if !self.options.time {
            return Ok(None);
        }
        let (batch_size, seq_len) = self.trials.timed_shape()?;
        Ok(Some(Timed {
            batch_size,
            seq_len,
            rest_ms: self.trials.time_rest()?,
        }))
    }
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
