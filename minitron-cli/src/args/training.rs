//! `train` and `distill`.

use std::path::PathBuf;

use clap::Args;
use minitron_core::plan::Count;
use minitron_core::registry::PluginSpec;
use minitron_engine::data::DataSpec;
use minitron_engine::pipeline::ComputeType;
use minitron_engine::train::{CacheType, Shape};

use super::Files;

/// What `train` and `distill` have in common.
#[derive(Debug, Args)]
pub struct Training {
    /// Training text: FILE, FILE#a..b for some of its documents, or WEIGHT*FILE, each, for a mixture
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<DataSpec>,
    /// Tokens to train on, for example 5M
    #[arg(long)]
    pub tokens: Count,
    /// Folder of the model, metrics.jsonl, logs/ (for TensorBoard) and checkpoint/
    #[arg(long)]
    pub out: PathBuf,
    /// Go on at the last checkpoint in the output folder, to the same result as without the interruption
    #[arg(long)]
    pub resume: bool,
    /// Stop after this step; --resume goes on
    #[arg(long)]
    pub stop_after: Option<u64>,
    /// Replace an existing output
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    #[command(flatten)]
    pub training: TrainingArgs,
}

/// How something is trained.
#[derive(Debug, Args)]
pub struct TrainingArgs {
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Windows per forward pass
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Forward passes per step
    #[arg(long, default_value_t = 1)]
    pub accumulate: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 1e-3)]
    pub lr: f64,
    /// Learning rate after warm-up: cosine, linear, constant or wsd (warm-up, stable, decay)
    #[arg(long, default_value = "cosine")]
    pub schedule: Shape,
    /// Share of all steps that wsd decays over, at the end
    #[arg(long, default_value_t = 0.1)]
    pub decay_share: f64,
    /// Last learning rate [default: a tenth of the highest]
    #[arg(long)]
    pub min_lr: Option<f64>,
    /// Warm-up steps [default: a twentieth of all]
    #[arg(long)]
    pub warmup: Option<u64>,
    /// Largest gradient norm
    #[arg(long, default_value_t = 1.0)]
    pub clip: f64,
    /// Decay of matrices and tables
    #[arg(long, default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Decay of AdamW's first moment
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// Decay of AdamW's second moment
    #[arg(long, default_value_t = 0.95)]
    pub beta2: f64,
    /// Added to the root of the second moment
    #[arg(long, default_value_t = 1e-8)]
    pub eps: f64,
    /// Steps in a row without a finite loss and gradient that end the run; fewer are skipped and counted
    #[arg(long, default_value_t = 10)]
    pub max_skipped: u64,
    /// A loss on logits or states, `name:key=value,weight=0.5`; on states also `alpha=dynamic`
    #[arg(long = "loss")]
    pub losses: Vec<PluginSpec>,
    /// Run every layer a second time in the backward pass instead of holding its inside in memory
    #[arg(long)]
    pub recompute: bool,
    /// Steps between checkpoints [default: a tenth of the run]
    #[arg(long)]
    pub checkpoint_every: Option<u64>,
    /// Minutes between checkpoints, where they come before the steps
    #[arg(long, default_value_t = 30.0)]
    pub checkpoint_minutes: f64,
    /// Checkpoints kept, beside the one of the best evaluation
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Held-out text to evaluate on between steps; the best student is kept in best/
    #[arg(long, num_args = 1..)]
    pub eval_data: Vec<DataSpec>,
    /// Steps between evaluations [default: those between checkpoints]
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// Windows of the held-out text [default: 64]
    #[arg(long)]
    pub eval_samples: Option<usize>,
    #[command(flatten)]
    pub files: Files,
}

/// `train`
#[derive(Debug, Args)]
pub struct Train {
    /// A model to go on with: folder or hub id
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    pub model: Option<String>,
    /// A config.json to start from random weights; the tokenizer beside it is used
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub training: Training,
}

/// `distill`
#[derive(Debug, Args)]
pub struct Distill {
    /// The original: folder or hub id
    #[arg(long)]
    pub teacher: String,
    /// What learns from it: folder or hub id
    #[arg(long)]
    pub student: String,
    #[command(flatten)]
    pub asked: TeacherArgs,
    #[command(flatten)]
    pub training: Training,
}

/// How a teacher is asked.
#[derive(Debug, Args)]
pub struct TeacherArgs {
    /// Read the teacher's layers from its files for every batch instead of holding it in memory
    #[arg(long)]
    pub stream_teacher: bool,
    /// What the teacher computes in: bf16 is faster than f32 where the processor has it, and takes half the memory [default: as --dtype]
    #[arg(long, value_name = "TYPE")]
    pub teacher_dtype: Option<ComputeType>,
    /// Folder that remembers the teacher's largest probabilities: every window is asked once, over epochs and runs
    #[arg(long, value_name = "DIR")]
    pub teacher_cache: Option<PathBuf>,
    /// Probabilities remembered per token
    #[arg(long, default_value_t = 64, value_name = "K")]
    pub cache_top_k: usize,
    /// Type of the remembered log-probabilities: f16 or f32
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub cache_type: CacheType,
    /// Let the teacher learn on, from the labels of the same text, at this share of the student's learning rate: 0.2 is a start
    #[arg(long, value_name = "SHARE")]
    pub correct_teacher: Option<f64>,
    /// Take a teacher with another tokenizer, or scores of another model, with a warning
    #[arg(long)]
    pub any_model: bool,
}
