//! From metrics and text to scores of any tensor source, in memory or streamed, within a memory
//! budget.

use std::path::{Path, PathBuf};

use super::gradient::mean_gradient;
use super::{ActivationStore, Metric, ScorerSet, Streamed};
use crate::memory::{LIBRARY_BYTES, mib, peak_bytes};
use crate::ranks::Ranks;
use minitron_core::calibrate::{Alone, Calibration, Scores};
use minitron_core::checkpoint::TensorSource;
use minitron_core::contract::Subject;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::progress::{Progress, Silent};
use minitron_core::spec::{HIDDEN, ModelSpec, Param, PruneGroup, Role};
use minitron_core::windows::{Task, Tokenize, Windows};

/// A model, a text, and how they are brought together.
#[derive(Clone, Copy)]
pub struct ScoreInputs<'a> {
    /// The model's tensors.
    pub source: &'a dyn TensorSource,
    /// Its description.
    pub spec: &'a ModelSpec,
    /// What is scored.
    pub groups: &'a [PruneGroup],
    /// The text.
    pub windows: &'a Windows,
    /// What the model is asked to predict; none where nothing can be asked of it.
    pub task: Option<Task>,
    /// The text's tokenizer, for metrics that measure tasks.
    pub tokenizer: Option<&'a dyn Tokenize>,
    /// Windows per forward pass, at most.
    pub batch_size: usize,
    /// Bytes that the process may take.
    pub max_memory: Option<u64>,
    /// Where and in what the model computes.
    pub options: LoadOptions,
    /// Seed of measurements and of resamples.
    pub seed: u64,
    /// Resamples of the windows that scores are kept for.
    pub bootstrap: usize,
    /// A folder for activations, where one layer is to be in memory at a time, and a digest of all
    /// that the scores follow from: an interrupted scoring of the same goes on from there.
    pub activations: Option<(&'a Path, &'a str)>,
    /// The processes that share the windows out among them; all are given the same.
    pub ranks: Ranks,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

/// Folds that resamples are drawn from: enough for survival shares of a few per cent.
const MAX_FOLDS: usize = 64;

/// The one way from metrics to scores: each metric is shown what it asks for (sites, ablations,
/// weights, gradients, tasks), in memory or, with `activations`, streamed. Both give the same
/// numbers, in batches of any size, and so do several ranks: bit by bit, but for gradients, whose
/// sums over ranks differ in the last digits of f32.
///
/// # Errors
/// `Recipe` for metrics that write one score or score nothing, a metric that needs the whole model
/// where it is streamed, or a budget that one window does not fit in; `Plugin` for scores that are
/// not one finite number a unit.
pub fn score(inputs: &ScoreInputs, metrics: Vec<Metric>) -> Result<Scores> {
    let n_folds = if inputs.bootstrap == 0 {
        0
    } else {
        inputs.windows.len().min(MAX_FOLDS)
    };
    let mut scorers = ScorerSet::new(metrics, inputs.groups, n_folds)?;
    match inputs.activations {
        Some((dir, digest)) => inputs.streamed(&mut scorers, dir, digest)?,
        None => inputs.in_memory(&mut scorers)?,
    }
    let mut scores = scorers.finish()?;
    scores.replicates = scorers.replicates(inputs.bootstrap, inputs.seed)?;
    Ok(scores)
}

impl<'a> ScoreInputs<'a> {
    /// One window at a time on the CPU, in memory, without a task and without a word.
    pub fn new(
        source: &'a dyn TensorSource,
        spec: &'a ModelSpec,
        groups: &'a [PruneGroup],
        windows: &'a Windows,
    ) -> Self {
        ScoreInputs {
            source,
            spec,
            groups,
            windows,
            task: None,
            tokenizer: None,
            batch_size: 1,
            max_memory: None,
            options: LoadOptions::default(),
            seed: 0,
            bootstrap: 0,
            activations: None,
            ranks: Ranks::alone(),
            progress: &Silent,
        }
    }
}

impl ScoreInputs<'_> {
    fn calibration(&self, batch_size: usize) -> Calibration<'_> {
        Calibration {
            windows: self.windows,
            task: self.task,
            batch_size,
            // Its parts are put in order elsewhere.
            world: &Alone,
            progress: self.progress,
        }
    }

    fn load(&self, trainable: bool) -> Result<Transformer> {
        let _span =
            tracing::info_span!("load", n_params = self.spec.n_params(), trainable).entered();
        Transformer::load(
            self.source,
            self.spec,
            LoadOptions {
                trainable,
                ..self.options
            },
        )
    }

    /// With the whole model in memory, and its gradients where a metric asks for them.
    fn in_memory(&self, scorers: &mut ScorerSet) -> Result<()> {
        let gradient_loss = scorers.gradient_loss()?;
        let n_copies = if gradient_loss.is_some() { 2 } else { 1 };
        let weights = n_copies * self.spec.n_params() * self.element_bytes();
        let input = self.calibration(self.fitting_batch(
            scorers,
            weights,
            "--stream holds one layer at a time",
        )?);
        let needs_model =
            scorers.wants_sites() || scorers.wants_ablations() || scorers.wants_measurements();
        if needs_model {
            let model = self.load(false)?;
            scorers.run(&model, &input, self.ranks)?;
            if scorers.wants_measurements() {
                let subject = Subject {
                    model: &model,
                    teacher: None,
                    kept_hidden: None,
                    windows: Some(self.windows),
                    tokenizer: self.tokenizer,
                    batch_size: input.batch_size,
                    seed: self.seed,
                    progress: self.progress,
                };
                scorers.measure(&subject, self.ranks)?;
            }
        }
        let gradients = match gradient_loss {
            Some(loss) => {
                let model = self.load(true)?;
                Some(mean_gradient(&model, loss, &input, self.ranks)?)
            }
            None => None,
        };
        if scorers.wants_weights() {
            let gradients = gradients
                .as_ref()
                .map(|gradients| gradients as &dyn TensorSource);
            scorers.observe_weights(self.source, gradients, self.spec, self.progress)?;
        }
        Ok(())
    }

    /// With one layer in memory; activations wait in a folder, from which an interrupted run goes
    /// on.
    fn streamed(&self, scorers: &mut ScorerSet, dir: &Path, digest: &str) -> Result<()> {
        if scorers.gradient_loss()?.is_some() || scorers.wants_measurements() {
            let message =
                "a metric asks for gradients or task results, which need the whole model in memory";
            return Err(Error::Recipe(format!(
                "{message}; leave --stream out, or score by it in a run of its own"
            )));
        }
        if scorers.wants_sites() || scorers.wants_ablations() {
            self.spec.check_computable()?;
        }
        let head = if scorers.ablation_spans().is_empty() {
            0
        } else {
            self.head_params()
        };
        let layers = 0..self.spec.n_layers();
        let layer = layers
            .map(|layer| self.params_of(|param| param.layer() == Some(layer)))
            .max()
            .unwrap_or(0);
        let weights = (layer + head) * self.element_bytes() + self.largest_stored(head > 0);
        let input = self.calibration(self.fitting_batch(
            scorers,
            weights,
            "one layer is held at a time already",
        )?);
        let ranks = self.ranks;
        let activations = ActivationStore::open(&own_place(dir, ranks), digest.to_owned())?;
        if let Some(layer_idx) = activations.reached() {
            self.progress.note(&format!(
                "an interrupted scoring goes on at layer {layer_idx}"
            ));
        }
        let options = LoadOptions {
            trainable: false,
            ..self.options
        };
        let model = Streamed {
            source: self.source,
            spec: self.spec,
            options,
            activations: &activations,
        };
        scorers.stream(&model, &input, ranks)?;
        if ranks.has_others() {
            // All are out of their folders.
            ranks.any(false)?;
            ranks.first(|| match dir.exists() {
                true => std::fs::remove_dir_all(dir).at_path(dir),
                false => Ok(()),
            })?;
        }
        if scorers.wants_weights() {
            scorers.observe_weights(self.source, None, self.spec, self.progress)?;
        }
        Ok(())
    }

    /// The largest batch, up to the one asked for, that keeps within the budget beside `weights`
    /// bytes, on all ranks.
    ///
    /// # Errors
    /// `Recipe` with what one window needs.
    fn fitting_batch(&self, scorers: &ScorerSet, weights: u64, advice: &str) -> Result<usize> {
        let Some(budget) = self.max_memory else {
            return Ok(self.batch_size);
        };
        let base = peak_bytes()
            .saturating_add(LIBRARY_BYTES)
            .saturating_add(weights);
        let needed = |size| base.saturating_add(self.activation_bytes(scorers, size));
        let fitting = (1..=self.batch_size).rev();
        let own = fitting.into_iter().find(|&size| needed(size) <= budget);
        let mut least = [-(own.unwrap_or(0) as f64)];
        self.ranks.greatest(&mut least)?;
        let size = -least[0] as usize;
        if own.is_some() && size == 0 {
            let message = "max_memory: one window is too much for another rank; its own output \
                           says what it needs";
            return Err(Error::Ranks(message.into()));
        }
        if size > 0 {
            let needed = mib(needed(size));
            self.progress.note(&format!(
                "memory: at most {needed}, in batches of {size} windows"
            ));
            return Ok(size);
        }
        Err(Error::Recipe(format!(
            "max_memory: scoring needs {} with one window of {} tokens at a time, {} were given; \
             {advice}, shorter windows (--seq-len) need less",
            mib(needed(1)),
            self.windows.width(),
            mib(budget)
        )))
    }

    /// What a batch takes at its widest: the stream a few times over (statistics in f64 included),
    /// the inside of the MLP and of attention, a chunk of logits, the streams that leave layers
    /// out, and the scorers' numbers.
    fn activation_bytes(&self, scorers: &ScorerSet, batch_size: usize) -> u64 {
        let n_layers = self.spec.n_layers();
        let n_spans = scorers.ablation_spans().len() + scorers.state_ablation_spans().len();
        let n_streams = 2 * n_spans * n_layers + 16;
        let inside = (0..n_layers)
            .map(|layer| self.spec.held_inside(layer))
            .max()
            .unwrap_or(0) as usize;
        let per_token = n_streams * self.spec.size(HIDDEN) + inside + inside / 4;
        let logits = if scorers.ablation_spans().is_empty() {
            0
        } else {
            160 << 20
        };
        let of_batch = batch_size * self.windows.width() * per_token * 4;
        let of_parts = scorers.part_bytes(batch_size, self.ranks.size());
        (of_batch + logits) as u64
            + scorers.state_bytes()
            + of_parts
            + self.kept_bytes(scorers, batch_size)
    }

    /// What the batches of one of several ranks showed at a layer, where it waits for the end.
    fn kept_bytes(&self, scorers: &ScorerSet, batch_size: usize) -> u64 {
        if self.activations.is_none() || !self.ranks.has_others() {
            return 0;
        }
        let n_batches = self.windows.len().div_ceil(batch_size * self.ranks.size());
        let of_layer = scorers.part_bytes(batch_size, 1) / self.spec.n_layers().max(1) as u64;
        of_layer * n_batches as u64
    }

    fn element_bytes(&self) -> u64 {
        self.options.kind.elt_size_in_bytes() as u64
    }

    fn params_of(&self, counts: impl Fn(&Param) -> bool) -> u64 {
        let infos = self.spec.params.iter().filter(|param| counts(param));
        infos
            .filter_map(|param| self.source.info(&param.name())?.n_elements())
            .sum()
    }

    /// The head's projection: its own, or the token table.
    fn head_params(&self) -> u64 {
        let role = if self.spec.has_own_head() {
            Role::HEAD
        } else {
            Role::TOKEN_EMBEDDING
        };
        self.params_of(|param| param.role == role)
    }

    /// A tensor as it is stored stands beside its copy for a moment.
    fn largest_stored(&self, with_head: bool) -> u64 {
        let params = self.spec.params.iter();
        params
            .filter(|param| param.layer().is_some() || with_head)
            .filter_map(|param| self.source.info(&param.name())?.n_bytes())
            .max()
            .unwrap_or(0)
    }
}

/// Where a rank's activations wait.
fn own_place(dir: &Path, ranks: Ranks) -> PathBuf {
    match ranks.has_others() {
        true => dir.join(format!("rank-{}-of-{}", ranks.rank(), ranks.size())),
        false => dir.to_path_buf(),
    }
}
