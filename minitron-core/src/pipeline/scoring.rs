//! From metrics and text to scores of any tensor source, in memory or streamed, within a memory budget.

use std::path::Path;

use super::context::Context;
use crate::blueprint::{Blueprint, HIDDEN, Role, TensorSpec};
use crate::calibrate::{Calibration, Pass, Spill, Streamed};
use crate::checkpoint::TensorSource;
use crate::contract::Subject;
use crate::data::{Task, Tokenizer, Windows};
use crate::error::{Error, Result};
use crate::memory::{mib, peak_bytes};
use crate::model::LoadOptions;
use crate::train::mean_gradient;

/// A model, a text, and how they are brought together.
pub(super) struct Scoring<'a> {
    pub context: &'a Context<'a>,
    pub source: &'a dyn TensorSource,
    pub blueprint: &'a Blueprint,
    pub tokenizer: &'a Tokenizer,
    pub windows: &'a Windows,
    pub batch_size: usize,
    pub max_memory: Option<u64>,
}

/// What libtorch and its matrix products take once they run, besides what the program takes by then.
const LIBRARY_BYTES: u64 = 256 << 20;

impl Scoring<'_> {
    fn calibration(&self, batch_size: usize) -> Calibration<'_> {
        // An encoder whose tokenizer has no mask is told so when something is to be predicted.
        let task = Task::of(self.blueprint.options.causal, self.tokenizer.mask, self.context.seed).ok();
        Calibration { windows: self.windows, task, batch_size, progress: self.context.progress }
    }

    /// With the whole model in memory, and its gradients where a metric asks for them.
    pub fn in_memory(&self, pass: &mut Pass) -> Result<()> {
        let gradient_loss = pass.gradient_loss()?;
        let n_copies = if gradient_loss.is_some() { 2 } else { 1 };
        let weights = n_copies * self.blueprint.n_params() * self.element_bytes();
        let input = self.calibration(self.fitting_batch(pass, weights, "--stream holds one layer at a time")?);
        let needs_model = pass.wants_sites() || !pass.ablation_spans().is_empty() || pass.wants_measurements();
        if needs_model {
            let model = self.context.load(self.source, self.blueprint, false)?;
            pass.run(&model, &input)?;
            if pass.wants_measurements() {
                pass.measure(&Subject {
                    model: &model,
                    teacher: None,
                    kept_hidden: None,
                    windows: Some(self.windows),
                    tokenizer: Some(self.tokenizer),
                    batch_size: input.batch_size,
                    seed: self.context.seed,
                    progress: self.context.progress,
                })?;
            }
        }
        let gradients = match gradient_loss {
            Some(loss) => {
                let model = self.context.load(self.source, self.blueprint, true)?;
                Some(mean_gradient(&model, loss, &input)?)
            }
            None => None,
        };
        if pass.wants_weights() {
            let gradients = gradients.as_ref().map(|gradients| gradients as &dyn TensorSource);
            pass.weigh(self.source, gradients, self.blueprint, self.context.progress)?;
        }
        Ok(())
    }

    /// With one layer in memory; activations wait in a folder beside `out`, from which an interrupted run goes on.
    ///
    /// # Errors
    /// `Recipe` for a metric that needs the whole model, or a budget that one window does not fit in.
    pub fn streamed(&self, pass: &mut Pass, out: &Path, inputs: &str) -> Result<()> {
        if pass.gradient_loss()?.is_some() || pass.wants_measurements() {
            let message = "a metric asks for gradients or task results, which need the whole model in memory";
            return Err(Error::Recipe(format!("{message}; leave --stream out, or score by it in a run of its own")));
        }
        if pass.wants_sites() || !pass.ablation_spans().is_empty() {
            self.blueprint.check_computable()?;
        }
        let head = if pass.ablation_spans().is_empty() { 0 } else { self.head_params() };
        let layers = 0..self.blueprint.n_layers();
        let layer = layers.map(|layer| self.params_of(|spec| spec.layer() == Some(layer))).max().unwrap_or(0);
        let weights = (layer + head) * self.element_bytes() + self.largest_stored(head > 0);
        let input = self.calibration(self.fitting_batch(pass, weights, "one layer is held at a time already")?);
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let spill = Spill::open(&out.with_file_name(format!(".{name}.streamed")), inputs.to_owned())?;
        if let Some(layer_idx) = spill.reached() {
            self.context.progress.note(&format!("an interrupted scoring goes on at layer {layer_idx}"));
        }
        let options = LoadOptions { device: self.context.device, kind: self.context.kind, trainable: false };
        let model = Streamed { source: self.source, blueprint: self.blueprint, options, spill: &spill };
        pass.stream(&model, &input)?;
        if pass.wants_weights() {
            pass.weigh(self.source, None, self.blueprint, self.context.progress)?;
        }
        Ok(())
    }

    /// The largest batch, up to the one asked for, that keeps within the budget beside `weights` bytes.
    ///
    /// # Errors
    /// `Recipe` with what one window needs.
    fn fitting_batch(&self, pass: &Pass, weights: u64, advice: &str) -> Result<usize> {
        let Some(budget) = self.max_memory else { return Ok(self.batch_size) };
        let base = peak_bytes().saturating_add(LIBRARY_BYTES).saturating_add(weights);
        let needed = |batch_size: usize| base.saturating_add(self.activation_bytes(pass, batch_size));
        let Some(batch_size) = (1..=self.batch_size).rev().find(|&size| needed(size) <= budget) else {
            return Err(Error::Recipe(format!(
                "max_memory: scoring needs {} with one window of {} tokens at a time, {} were given; {advice}, \
                 shorter windows (--seq-len) need less",
                mib(needed(1)),
                self.windows.width(),
                mib(budget)
            )));
        };
        let message = format!("memory: at most {}, in batches of {batch_size} windows", mib(needed(batch_size)));
        self.context.progress.note(&message);
        Ok(batch_size)
    }

    /// What a batch takes at its widest: the stream a few times over (statistics in f64 included), the inside of the MLP
    /// and of attention, a chunk of logits, the streams that leave layers out, and the scorers' numbers.
    fn activation_bytes(&self, pass: &Pass, batch_size: usize) -> u64 {
        let n_layers = self.blueprint.n_layers();
        let n_streams = 2 * pass.ablation_spans().len() * n_layers + 16;
        let inside = (0..n_layers).map(|layer| self.blueprint.held_inside(layer)).max().unwrap_or(0) as usize;
        let per_token = n_streams * self.blueprint.size(HIDDEN) + inside + inside / 4;
        let logits = if pass.ablation_spans().is_empty() { 0 } else { 160 << 20 };
        (batch_size * self.windows.width() * per_token * 4 + logits) as u64 + pass.state_bytes()
    }

    fn element_bytes(&self) -> u64 {
        self.context.kind.elt_size_in_bytes() as u64
    }

    fn params_of(&self, counts: impl Fn(&TensorSpec) -> bool) -> u64 {
        let infos = self.blueprint.tensors.iter().filter(|spec| counts(spec));
        infos.filter_map(|spec| self.source.info(&spec.name())?.n_elements()).sum()
    }

    /// The head's projection: its own, or the token table.
    fn head_params(&self) -> u64 {
        let role = if self.blueprint.has_own_head() { Role::HEAD } else { Role::TOKEN_EMBEDDING };
        self.params_of(|spec| spec.role == role)
    }

    /// A tensor as it is stored stands beside its copy for a moment.
    fn largest_stored(&self, with_head: bool) -> u64 {
        let counts = |spec: &&TensorSpec| spec.layer().is_some() || with_head;
        let sizes = self.blueprint.tensors.iter().filter(counts);
        sizes.filter_map(|spec| self.source.info(&spec.name())?.n_bytes()).max().unwrap_or(0)
    }
}
