//! What `prune` is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reconstruction::ReconstructOptions;
use crate::data::DataSpec;
use crate::jobs::context::SizeRequest;
use minitron_core::error::{Error, Result};
use minitron_core::plan::Bytes;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, ModelFolder, Sizes};

/// Options of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct PruneOptions {
    /// Folder or hub id.
    pub model: String,
    /// Its scores.
    #[arg(long)]
    pub scores: Option<String>,
    /// Residual channels to keep.
    #[arg(long)]
    pub hidden: Option<usize>,
    /// Neurons to keep in each layer.
    #[arg(long)]
    pub mlp: Option<usize>,
    /// Query heads to keep in each layer.
    #[arg(long)]
    pub heads: Option<usize>,
    /// Key/value heads to keep in each layer, each with its query heads.
    #[arg(long)]
    pub kv_heads: Option<usize>,
    /// Layers to keep.
    #[arg(long)]
    pub layers: Option<usize>,
    /// Sizes by kind of dim, of any that an axis of the model names; those above are the same for
    /// some kinds.
    #[arg(skip)]
    pub size: BTreeMap<String, usize>,
    /// Parameters to end with, `4B` or `4B+-5%`; sizes beside it are held.
    #[arg(long)]
    pub params: Option<String>,
    /// Parameters that one token goes through to end with, `3B+-5%`; sizes beside it are held.
    #[arg(long)]
    pub active_params: Option<String>,
    /// Share of all parameters to keep; sizes beside it are held.
    #[arg(long)]
    pub ratio: Option<f64>,
    /// `--ratio` leaves embeddings and output head out.
    #[arg(long, requires = "ratio")]
    pub non_embedding: bool,
    /// Most that weights and key/value cache may take, `8GiB`; sizes beside it are held.
    #[arg(long)]
    pub memory: Option<String>,
    /// Tokens per sequence of the key/value cache, as `inspect --seq-len` [default: the model's
    /// positions]
    #[arg(long, requires = "memory")]
    pub kv_seq_len: Option<usize>,
    /// Sequences of the key/value cache, as `inspect --batch-size` [default: 1]
    #[arg(long, requires = "memory")]
    pub kv_batch_size: Option<usize>,
    /// Another allocator, `name:key=value`.
    #[arg(long)]
    #[schemars(extend("plugins" = ["allocator"]))]
    pub allocator: Option<PluginSpec>,
    /// Keep hidden = heads x head_dim: llama.cpp's Nemotron and optimum's Llama want it.
    #[arg(long)]
    pub square: bool,
    /// Layers may differ: a Llama's student is written as a DeciLM with block_configs, for
    /// llama.cpp and vLLM, not for stock transformers.
    #[arg(long)]
    pub layers_apart: bool,
    /// A finished plan.json.
    #[arg(long)]
    pub plan: Option<PathBuf>,
    /// An axis with parameters of its own, `mlp:multiple_of=64` [default: all axes]
    #[arg(long = "axis")]
    #[schemars(extend("plugins" = ["axis"]))]
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim; needed where two scored it. The empty key stands for
    /// all kinds.
    #[arg(skip)]
    pub by: BTreeMap<String, String>,
    /// Replicates that `score --bootstrap` left and that must be there, to say which units survive
    /// resampling.
    #[arg(long)]
    pub bootstrap: Option<usize>,
    /// What smaller parts of layers cost, as `blocks` measured it: layers then differ where the
    /// family's config can say so, and a budget chooses which.
    #[arg(long)]
    pub blocks: Option<String>,
    /// Times of parts, from `blocks --time` on another machine; those of `--blocks` else.
    #[arg(long, requires = "blocks")]
    pub times: Option<String>,
    /// Most milliseconds of a forward pass, as `blocks --time` measured its parts.
    #[arg(long, requires = "blocks")]
    pub latency_ms: Option<f64>,
    /// Rounds of scoring and pruning along a linear schedule; later rounds score --data anew.
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// A metric of later rounds, `name:key=value` [default: activation, block_influence]
    #[arg(long = "metric")]
    #[schemars(extend("plugins" = ["importance"]))]
    pub metrics: Vec<PluginSpec>,
    /// Memory that the process may take, `1GiB`: rows are copied in smaller chunks, and what
    /// reconstructions hold of the text waits beside the output.
    #[arg(long)]
    pub max_memory: Option<Bytes>,
    /// Held-out text: what the original, the plain cut and the reconstructed student make of it is
    /// in the result.
    #[arg(long, num_args = 1..)]
    pub eval_data: Vec<DataSpec>,
    /// Windows of the held-out text, its first [default: 64]
    #[arg(long)]
    pub eval_samples: Option<usize>,
    /// Take scores and a plan of another model, with a warning.
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub any_model: bool,
    /// Reconstructions and their text.
    #[serde(flatten)]
    #[command(flatten)]
    pub reconstruction: ReconstructOptions,
}

impl PruneOptions {
    /// Every size that is asked for.
    ///
    /// # Errors
    /// `Recipe` for a kind with two sizes.
    pub(crate) fn sizes(&self) -> Result<Sizes> {
        let short = [
            ("hidden", self.hidden),
            ("mlp", self.mlp),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("layers", self.layers),
        ];
        let short = short
            .into_iter()
            .filter_map(|(option, size)| Some((option, size?)));
        let all = short.chain(self.size.iter().map(|(kind, &size)| (kind.as_str(), size)));
        let mut sizes = Sizes::new();
        for (kind, size) in all {
            let before = sizes.insert(kind_of(kind).to_owned(), size);
            if let Some(before) = before.filter(|before| *before != size) {
                return Err(Error::Recipe(format!(
                    "size: `{kind}` is given twice, {before} and {size}; give one of them"
                )));
            }
        }
        Ok(sizes)
    }

    pub(crate) fn wanted(&self, folder: &ModelFolder) -> Result<SizeRequest> {
        Ok(SizeRequest {
            sizes: self.sizes()?,
            params: self.params.clone(),
            active_params: self.active_params.clone(),
            ratio: self.ratio,
            non_embedding: self.non_embedding,
            memory: self.memory.clone(),
            seq_len: self.kv_seq_len,
            batch_size: self.kv_batch_size,
            by_blocks: self.blocks.is_some(),
            latency_ms: self.latency_ms,
            bytes_per_param: folder.n_bytes() as f64 / folder.spec.n_params().max(1) as f64,
        })
    }
}

/// The kind of dim that options call so: the depth is `layers` to those who type it.
pub(crate) fn kind_of(word: &str) -> &str {
    if word == "layers" { DEPTH } else { word }
}
