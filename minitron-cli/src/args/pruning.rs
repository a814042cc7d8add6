//! What `prune` takes.

use std::path::PathBuf;

use clap::Args;
use minitron_engine::jobs::PruneOptions;

/// `prune`
#[derive(Debug, Args)]
pub struct Prune {
    #[command(flatten)]
    pub options: PruneOptions,
    /// Sizes by kind, of any axis of the model: `mlp=96,heads=4`; `rope_pairs=48` makes head_dim 96
    #[arg(long, value_name = "DIM=N,…")]
    pub size: Vec<String>,
    /// Which metric decides where two scored an axis: LABEL, or KIND=LABEL
    #[arg(long = "by")]
    pub by: Vec<String>,
    /// Where the student goes
    #[arg(long, required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Plan and reconstruct, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing output
    #[arg(long)]
    pub force: bool,
}
