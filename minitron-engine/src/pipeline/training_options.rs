//! What `train`, `distill` and `search` are told of a training.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{DataSpec, Reading, TextOptions};
use crate::train::{Saving, Shape, TrainSettings};
use minitron_core::plan::Count;
use minitron_core::registry::PluginSpec;

/// What `train` and `distill` have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TrainingOptions {
    /// Training text.
    pub data: Vec<DataSpec>,
    /// Tokens to train on.
    pub tokens: Count,
    /// Tokens per window.
    pub seq_len: Option<usize>,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Forward passes per step.
    pub accumulate: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// How the learning rate goes on after warm-up: cosine, linear, constant or wsd (warm-up, stable, decay).
    pub schedule: Shape,
    /// Share of all steps that a `wsd` schedule decays over, at the end.
    pub decay_share: f64,
    /// Last learning rate; a tenth of the highest where not given.
    pub min_lr: Option<f64>,
    /// Warm-up steps; a twentieth of all where not given.
    pub warmup: Option<u64>,
    /// Largest gradient norm.
    pub clip: f64,
    /// Decay of matrices and tables.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of its second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps in a row without a finite loss and gradient that end the run; fewer are skipped and counted.
    pub max_skipped: u64,
    /// Losses with an optional `weight`; the defaults where empty.
    pub losses: Vec<PluginSpec>,
    /// Steps between checkpoints; a tenth of the run where not given.
    pub checkpoint_every: Option<u64>,
    /// Minutes between checkpoints, where they come before the steps.
    pub checkpoint_minutes: f64,
    /// Checkpoints kept, beside the one of the best evaluation.
    pub keep: usize,
    /// Held-out text to evaluate on between steps.
    pub eval_data: Vec<DataSpec>,
    /// Steps between evaluations; those between checkpoints where not given.
    pub eval_every: Option<u64>,
    /// Windows of the held-out text, the first ones; 64 where not given.
    pub eval_samples: Option<usize>,
    /// Stop after this step; `resume` goes on.
    pub stop_after: Option<u64>,
    /// How the text is read.
    #[serde(flatten)]
    pub text: TextOptions,
    /// Whether every layer runs a second time in the backward pass instead of its inside being held in memory.
    pub recompute: bool,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        let (settings, saving) = (TrainSettings::default(), Saving::default());
        TrainingOptions {
            data: Vec::new(),
            tokens: Count(settings.n_tokens),
            seq_len: None,
            batch_size: settings.batch_size,
            accumulate: settings.accumulate,
            lr: settings.lr,
            schedule: settings.schedule,
            decay_share: settings.decay_share,
            min_lr: None,
            warmup: None,
            clip: settings.clip,
            weight_decay: settings.adamw.weight_decay,
            beta1: settings.adamw.beta1,
            beta2: settings.adamw.beta2,
            eps: settings.adamw.eps,
            max_skipped: 10,
            losses: Vec::new(),
            checkpoint_every: saving.every,
            checkpoint_minutes: saving.minutes,
            keep: saving.keep,
            eval_data: Vec::new(),
            eval_every: None,
            eval_samples: None,
            stop_after: None,
            text: TextOptions::default(),
            recompute: false,
        }
    }
}

impl TrainingOptions {
    pub(super) fn reading(&self, seq_len: usize, seed: u64) -> Reading {
        self.text.reading(seq_len, None, seed)
    }
}
