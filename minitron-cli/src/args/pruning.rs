//! What `prune` takes.

use std::path::PathBuf;

use clap::Args;
use minitron_core::plan::Bytes;
use minitron_core::registry::PluginSpec;
use minitron_engine::data::DataSpec;

use super::Files;

/// `prune`
#[derive(Debug, Args)]
pub struct Prune {
    /// Folder or hub id
    pub model: String,
    /// Its scores
    #[arg(long)]
    pub scores: Option<String>,
    /// Where the student goes
    #[arg(long, required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Residual channels to keep
    #[arg(long)]
    pub hidden: Option<usize>,
    /// Neurons to keep in each layer
    #[arg(long)]
    pub mlp: Option<usize>,
    /// Query heads to keep in each layer
    #[arg(long)]
    pub heads: Option<usize>,
    /// Key/value heads to keep in each layer, each with its query heads
    #[arg(long)]
    pub kv_heads: Option<usize>,
    /// Layers to keep
    #[arg(long)]
    pub layers: Option<usize>,
    /// Sizes by kind, of any axis of the model: `mlp=96,heads=4`; `rope_pairs=48` makes head_dim 96
    #[arg(long, value_name = "DIM=N,…")]
    pub size: Vec<String>,
    /// Parameters to end with, `4B` or `4B+-5%`; sizes beside it are held
    #[arg(long)]
    pub params: Option<String>,
    /// Share of all parameters to keep; sizes beside it are held
    #[arg(long)]
    pub ratio: Option<f64>,
    /// `--ratio` leaves embeddings and output head out
    #[arg(long, requires = "ratio")]
    pub non_embedding: bool,
    /// Most that weights and key/value cache may take, `8GiB`; sizes beside it are held
    #[arg(long)]
    pub memory: Option<String>,
    /// Tokens per sequence of the key/value cache, as `inspect --seq-len` [default: the model's positions]
    #[arg(long, requires = "memory")]
    pub kv_seq_len: Option<usize>,
    /// Sequences of the key/value cache, as `inspect --batch-size` [default: 1]
    #[arg(long, requires = "memory")]
    pub kv_batch_size: Option<usize>,
    /// Keep hidden = heads x head_dim: llama.cpp's Nemotron and optimum's Llama want it
    #[arg(long)]
    pub square: bool,
    /// Another allocator, `name:key=value`
    #[arg(long)]
    pub allocator: Option<PluginSpec>,
    /// A finished plan.json
    #[arg(long)]
    pub plan: Option<PathBuf>,
    /// An axis with parameters of its own, `mlp:multiple_of=64` [default: all axes]
    #[arg(long = "axis")]
    pub axes: Vec<PluginSpec>,
    /// Which metric decides where two scored an axis: LABEL, or KIND=LABEL
    #[arg(long = "by")]
    pub by: Vec<String>,
    /// Replicates that `score --bootstrap` left and that must be there, to say which units survive resampling
    #[arg(long)]
    pub bootstrap: Option<usize>,
    /// Rounds of scoring and pruning along a linear schedule; later rounds score --data anew
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// A metric of later rounds, `name:key=value` [default: activation, block_influence]
    #[arg(long = "metric")]
    pub metrics: Vec<PluginSpec>,
    /// Memory that the process may take, `1GiB`: rows are copied in smaller chunks to keep it
    #[arg(long)]
    pub max_memory: Option<Bytes>,
    /// Take scores and a plan of another model, with a warning
    #[arg(long)]
    pub any_model: bool,
    /// Plan and reconstruct, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing output
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub reconstruction: ReconstructOptions,
}

/// Repair of what pruning damaged, without training.
#[derive(Debug, Args)]
pub struct ReconstructOptions {
    /// Slice alone: Gemma's embeddings and narrower heads are not compensated for fewer channels
    #[arg(long)]
    pub uncompensated: bool,
    /// A reconstruction, `name:key=value`; several are applied in order
    #[arg(long)]
    pub heal: Vec<PluginSpec>,
    /// Calibration text for the reconstructions: FILE, or FILE#a..b for some of its documents
    #[arg(long, num_args = 1..)]
    pub data: Vec<DataSpec>,
    /// Windows used
    #[arg(long, default_value_t = 128)]
    pub samples: usize,
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Windows per forward pass
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    #[command(flatten)]
    pub files: Files,
}
