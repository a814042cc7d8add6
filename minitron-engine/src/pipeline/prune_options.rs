//! What `prune` is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::context::SizeRequest;
use super::reconstruction::ReconstructOptions;
use minitron_core::error::{Error, Result};
use minitron_core::plan::Bytes;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, ModelFolder, Sizes};

/// Options of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PruneOptions {
    /// The model.
    pub model: String,
    /// Its scores.
    pub scores: Option<String>,
    /// Residual channels to keep.
    pub hidden: Option<usize>,
    /// Neurons to keep in each layer.
    pub mlp: Option<usize>,
    /// Query heads to keep in each layer.
    pub heads: Option<usize>,
    /// Key/value heads to keep in each layer, each with its query heads.
    pub kv_heads: Option<usize>,
    /// Layers to keep.
    pub layers: Option<usize>,
    /// Sizes by kind of dim, of any that an axis of the model names; those above are the same for some kinds.
    pub size: BTreeMap<String, usize>,
    /// A budget, for example `4B+-5%`.
    pub params: Option<String>,
    /// Share of the parameters to keep.
    pub ratio: Option<f64>,
    /// Whether `ratio` leaves embeddings and output head out.
    pub non_embedding: bool,
    /// Most bytes that weights and key/value cache may take, for example `8GiB`.
    pub memory: Option<String>,
    /// Tokens per sequence of that cache; the model's positions where not given.
    pub kv_seq_len: Option<usize>,
    /// Sequences of that cache; 1 where not given.
    pub kv_batch_size: Option<usize>,
    /// Another allocator than the sizes, budget, ratio or memory above ask for.
    pub allocator: Option<PluginSpec>,
    /// Whether the hidden width is to be heads x head_dim: some programs that load students want it.
    pub square: bool,
    /// A finished plan.
    pub plan: Option<PathBuf>,
    /// Axes with parameters of their own; all with defaults where empty.
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim; needed where two scored it. The empty key stands for all kinds.
    pub by: BTreeMap<String, String>,
    /// Replicates of the scores that must be there to say which units survive resampling; all there are where not given.
    pub bootstrap: Option<usize>,
    /// Rounds of scoring and pruning; above 1, `metrics` score the data anew after each.
    pub rounds: usize,
    /// Metrics of later rounds; the defaults where empty.
    pub metrics: Vec<PluginSpec>,
    /// Memory that the process may take, for example `1GiB`; decides nothing about the student.
    pub max_memory: Option<Bytes>,
    /// Whether scores and a plan of another model are taken, with a warning.
    pub any_model: bool,
    /// Reconstructions and their text.
    #[serde(flatten)]
    pub reconstruction: ReconstructOptions,
}

impl PruneOptions {
    /// Every size that is asked for.
    ///
    /// # Errors
    /// `Recipe` for a kind with two sizes.
    pub(super) fn sizes(&self) -> Result<Sizes> {
        let short = [
            ("hidden", self.hidden),
            ("mlp", self.mlp),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("layers", self.layers),
        ];
        let short = short.into_iter().filter_map(|(option, size)| Some((option, size?)));
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

    pub(super) fn wanted(&self, folder: &ModelFolder) -> Result<SizeRequest> {
        Ok(SizeRequest {
            sizes: self.sizes()?,
            params: self.params.clone(),
            ratio: self.ratio,
            non_embedding: self.non_embedding,
            memory: self.memory.clone(),
            seq_len: self.kv_seq_len,
            batch_size: self.kv_batch_size,
            bytes_per_param: folder.n_bytes() as f64 / folder.spec.n_params().max(1) as f64,
        })
    }
}

/// The kind of dim that options call so: the depth is `layers` to those who type it.
pub(super) fn kind_of(word: &str) -> &str {
    if word == "layers" { DEPTH } else { word }
}
