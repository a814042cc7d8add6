//! `train` and `distill`.

use std::path::PathBuf;

use clap::Args;
use minitron_core::plan::Count;
use minitron_engine::data::DataSpec;
use minitron_engine::jobs::{DistillOptions, TrainOptions, TrainingOptions};

/// What `train` and `distill` have in common beside their options: text, length, and where the
/// output goes.
#[derive(Debug, Args)]
pub struct Training {
    /// Training text: FILE, FILE#a..b for some of its documents, or WEIGHT*FILE, each, for a
    /// mixture
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<DataSpec>,
    /// Tokens to train on, for example 5M
    #[arg(long)]
    pub tokens: Count,
    /// Folder of the model, metrics.jsonl, logs/ (for TensorBoard) and checkpoint/
    #[arg(long)]
    pub out: PathBuf,
    /// Go on at the last checkpoint in the output folder, to the same result as without the
    /// interruption
    #[arg(long)]
    pub resume: bool,
    /// Stop after this step; --resume goes on
    #[arg(long)]
    pub stop_after: Option<u64>,
    /// Replace an existing output
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
}

impl Training {
    /// What is required here, and of a search only where it runs.
    pub fn complete(&self, training: &TrainingOptions) -> TrainingOptions {
        let (data, tokens, stop_after) = (self.data.clone(), self.tokens, self.stop_after);
        TrainingOptions {
            data,
            tokens,
            stop_after,
            ..training.clone()
        }
    }
}

/// `train`
#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    pub options: TrainOptions,
    #[command(flatten)]
    pub training: Training,
}

/// `distill`
#[derive(Debug, Args)]
pub struct Distill {
    #[command(flatten)]
    pub options: DistillOptions,
    #[command(flatten)]
    pub training: Training,
}
