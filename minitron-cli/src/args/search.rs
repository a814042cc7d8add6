//! `search`.

use std::path::PathBuf;

use clap::Args;
use minitron_core::plan::{Bytes, Count};
use minitron_core::registry::PluginSpec;
use minitron_engine::data::DataSpec;

use super::{TeacherArgs, TrainingArgs};

/// `search`
#[derive(Debug, Args)]
pub struct Search {
    /// The original, which is pruned and teaches: folder or hub id
    pub model: String,
    /// Its scores
    #[arg(long, required_unless_present = "dry_run", default_value = "")]
    pub scores: String,
    /// Parameters of a candidate, `4B` or `4B+-5%`
    #[arg(long)]
    pub params: Option<String>,
    /// Most that weights and key/value cache may take, `8GiB`; least is 5 % less
    #[arg(long)]
    pub memory: Option<String>,
    /// Tokens per sequence of the key/value cache [default: the model's positions]
    #[arg(long, requires = "memory")]
    pub kv_seq_len: Option<usize>,
    /// Sizes to try, KIND=LIST: `layers=29-32`, `heads=24,32,48`, `hidden=2560-4608/512`, `mlp_factor=2.5,3` (of the hidden width) [default: all legal widths and heads]
    #[arg(long)]
    pub grid: Vec<String>,
    /// The same for several kinds, as `prune` has it: `mlp=96,heads=2,4`
    #[arg(long, value_name = "DIM=N,…")]
    pub size: Vec<String>,
    /// An axis that the default grid has too: depth, kv_heads, rope_pairs (head_dim in pairs)
    #[arg(long)]
    pub free: Vec<String>,
    /// What a candidate must answer with yes: `hidden % 128 == 0 && mlp >= 2 * hidden`
    #[arg(long)]
    pub filter: Option<String>,
    /// Keep hidden = heads x head_dim: llama.cpp's Nemotron and optimum's Llama want it
    #[arg(long)]
    pub square: bool,
    /// Most candidates, the most evenly shrunk ones
    #[arg(long, default_value_t = 16)]
    pub candidates: usize,
    /// How many of them are trained, the best ones before training [default: all]
    #[arg(long)]
    pub screen: Option<usize>,
    /// Stretches of training, after each of which some leave
    #[arg(long, default_value_t = 3)]
    pub rungs: usize,
    /// Share that stays after each
    #[arg(long, default_value_t = 0.5)]
    pub keep_share: f64,
    /// An axis with parameters of its own, `mlp:multiple_of=64` [default: all axes]
    #[arg(long = "axis")]
    pub axes: Vec<PluginSpec>,
    /// Which metric decides where two scored an axis: LABEL, or KIND=LABEL
    #[arg(long = "by")]
    pub by: Vec<String>,
    /// A reconstruction of every candidate, `name:key=value`; several are applied in order
    #[arg(long)]
    pub heal: Vec<PluginSpec>,
    /// Windows of the training text that reconstructions look at
    #[arg(long, default_value_t = 128)]
    pub reconstruct_samples: usize,
    /// Memory for candidates that learn side by side [default: half of what is free]
    #[arg(long)]
    pub max_memory: Option<Bytes>,
    /// Count and list the candidates, from sizes alone
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub asked: TeacherArgs,
    /// Training text: FILE, FILE#a..b for some of its documents, or WEIGHT*FILE, each, for a mixture
    #[arg(long, num_args = 1.., required_unless_present = "dry_run")]
    pub data: Vec<DataSpec>,
    /// Tokens that a candidate that stays to the end is trained on, for example 5M
    #[arg(long, required_unless_present = "dry_run")]
    pub tokens: Option<Count>,
    /// Folder of search.json, candidates/ and winner/
    #[arg(long, required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Go on where an interrupted search was, to the same result as without the interruption
    #[arg(long)]
    pub resume: bool,
    /// Replace an existing output
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    #[command(flatten)]
    pub training: TrainingArgs,
}
