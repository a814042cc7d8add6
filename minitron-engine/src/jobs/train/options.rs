//! What `train`, `distill` and `search` are told of a training.

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{DataSpec, Reading, TextOptions};
use crate::train::{LengthStage, Saving, ScheduleShape, Sharding, TrainSettings};
use minitron_core::plan::Count;
use minitron_core::registry::PluginSpec;

/// What `train` and `distill` have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct TrainingOptions {
    /// Training text.
    #[arg(skip)]
    #[schemars(extend("by_content" = true))]
    pub data: Vec<DataSpec>,
    /// Tokens to train on.
    #[arg(skip = Self::default().tokens)]
    pub tokens: Count,
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Longer windows for the last share of the steps, SHARE:TOKENS as in 0.03:4096; a step keeps
    /// its number of tokens, in fewer windows.
    #[arg(long, value_name = "SHARE:TOKENS")]
    #[schemars(with = "Option<String>")]
    pub length_stage: Option<LengthStage>,
    /// Windows per forward pass.
    #[arg(long, default_value_t = Self::default().batch_size)]
    pub batch_size: usize,
    /// Forward passes per step.
    #[arg(long, default_value_t = Self::default().accumulate)]
    pub accumulate: usize,
    /// Highest learning rate [default: 1e-3; of distill, by the student's KL to its teacher at the
    /// start]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Learning rate after warm-up: cosine, linear, constant or wsd (warm-up, stable, decay).
    #[arg(long, default_value = "cosine")]
    pub schedule: ScheduleShape,
    /// Share of all steps that wsd decays over, at the end.
    #[arg(long, default_value_t = Self::default().decay_share)]
    pub decay_share: f64,
    /// Last learning rate [default: a tenth of the highest]
    #[arg(long)]
    pub min_lr: Option<f64>,
    /// Warm-up steps [default: a twentieth of all]
    #[arg(long)]
    pub warmup: Option<u64>,
    /// Largest gradient norm.
    #[arg(long, default_value_t = Self::default().clip)]
    pub clip: f64,
    /// Decay of matrices and tables.
    #[arg(long, default_value_t = Self::default().weight_decay)]
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    #[arg(long, default_value_t = Self::default().beta1)]
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    #[arg(long, default_value_t = Self::default().beta2)]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[arg(long, default_value_t = Self::default().eps)]
    pub eps: f64,
    /// Steps in a row without a finite loss and gradient that end the run; fewer are skipped and
    /// counted.
    #[arg(long, default_value_t = Self::default().max_skipped)]
    #[schemars(extend("decides" = false))]
    pub max_skipped: u64,
    /// A loss on logits or states, `name:key=value,weight=0.5`; on states also `alpha=dynamic`.
    #[arg(long = "loss")]
    #[schemars(extend("plugins" = ["loss", "state_loss"]))]
    pub losses: Vec<PluginSpec>,
    /// Steps between checkpoints [default: a tenth of the run]
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub checkpoint_every: Option<u64>,
    /// Minutes between checkpoints, where they come before the steps.
    #[arg(long, default_value_t = Self::default().checkpoint_minutes)]
    #[schemars(extend("decides" = false))]
    pub checkpoint_minutes: f64,
    /// Checkpoints kept, beside the one of the best evaluation.
    #[arg(long, default_value_t = Self::default().keep)]
    #[schemars(extend("decides" = false))]
    pub keep: usize,
    /// Held-out text to evaluate on between steps; the best student is kept in best/.
    #[arg(long, num_args = 1..)]
    #[schemars(extend("by_content" = true))]
    pub eval_data: Vec<DataSpec>,
    /// Steps between evaluations [default: those between checkpoints]
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// Windows of the held-out text [default: 64]
    #[arg(long)]
    pub eval_samples: Option<usize>,
    /// Stop after this step; `resume` goes on.
    #[arg(skip)]
    #[schemars(extend("decides" = false))]
    pub stop_after: Option<u64>,
    /// How the text is read.
    #[serde(flatten)]
    #[command(flatten)]
    pub text: TextOptions,
    /// Run every layer a second time in the backward pass instead of holding its inside in memory.
    #[arg(long)]
    pub recompute: bool,
    /// What each of several processes keeps a part of: none; optimizer, its moments and masters; or
    /// layers, their weights and gradients too, and the teacher's.
    #[arg(long, value_enum, default_value = "none")]
    #[schemars(extend("decides" = false))]
    pub shard: Sharding,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        let (settings, saving) = (TrainSettings::default(), Saving::default());
        TrainingOptions {
            data: Vec::new(),
            tokens: Count(settings.n_tokens),
            seq_len: None,
            length_stage: None,
            batch_size: settings.batch_size,
            accumulate: settings.accumulate,
            lr: None,
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
            shard: Sharding::None,
        }
    }
}

impl TrainingOptions {
    pub(crate) fn reading(&self, seq_len: usize, seed: u64) -> Reading {
        self.text.reading(seq_len, None, seed)
    }
}
