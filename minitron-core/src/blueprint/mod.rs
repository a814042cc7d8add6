//! A family's description of one model: dims, tensors and block options. Data only.
//!
//! ```text
//! dims      hidden 64      mlp.3 172      kv_heads.3 4      heads.3 8 (partition kv_heads.3)      depth 5
//! tensors   q_proj [ heads.3 x8 | hidden ]     k_proj [ kv_heads.3 x8 | hidden ]     o_proj [ hidden | heads.3 x8 ]
//! ```
//!
//! An architecture plugin writes it, [`Blueprint::check`] compares it with the file, and everything further right
//! (model, groups, plans, views, parameter counts) follows from it without knowing a single tensor name.

mod clients;
mod dim;
mod group;
mod model_folder;
mod options;
mod part;
mod renaming;
mod rotary;
mod shape;
mod table;
mod unread;

pub use clients::ClientLimit;
pub use dim::{DEPTH, Dim, HEADS, HIDDEN, KV_HEADS, MLP, dim_of_layer, split_dim};
pub use group::PruneGroup;
pub use model_folder::{Evidence, ModelFolder};
pub use options::{Activation, NormKind, NormPlace, Options, Output, Positions, Rotary, RotaryScaling};
pub use part::{Part, Role, Side, Slot, TensorSpec, units};
pub use shape::{Shape, ShapeKeys};
pub use table::{Table, fixed};

use std::collections::{BTreeMap, HashMap};

use crate::checkpoint::{Config, PIECE_BYTES, TensorInfo, TensorSource};
use crate::error::{Error, Result};

/// Target or actual size per kind of dim: `hidden`, `mlp`, `heads`, `kv_heads`, `depth`.
pub type Sizes = BTreeMap<String, usize>;

/// Everything that is known of a model besides its weights.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// Tag of the architecture plugin that wrote it.
    pub architecture: String,
    /// The configuration it was written from.
    pub config: Config,
    /// Named sizes, by name.
    pub dims: BTreeMap<String, Dim>,
    /// Every tensor of the model, layer after layer.
    pub tensors: Vec<TensorSpec>,
    /// How a block computes.
    pub options: Options,
    /// Entries that a student's config must state although the source may leave them to defaults.
    pub pinned: Vec<(String, serde_json::Value)>,
    /// `hidden = heads x head_dim` always, where the family has no config key for `head_dim`.
    pub hidden_follows_heads: bool,
    /// `hidden` must be a multiple of `heads`, where the family's config class insists on it whatever `head_dim` says.
    pub heads_divide_hidden: bool,
    /// Endings of names under which older files hold buffers beside the weights: nothing is lost with them.
    pub buffers: &'static [&'static str],
    /// Keys of config.json that change other families and that this one reads, so that nobody is warned of them.
    pub reads: &'static [&'static str],
    index: HashMap<(Role, Slot, Option<usize>), usize>,
}

impl Blueprint {
    /// Puts the parts together.
    ///
    /// # Errors
    /// `Internal` when two tensors have one role or a part names no dim: the architecture plugin is at fault.
    pub fn new(
        architecture: &str,
        config: &Config,
        dims: Vec<Dim>,
        tensors: Vec<TensorSpec>,
        options: Options,
    ) -> Result<Self> {
        let dims: BTreeMap<String, Dim> = dims.into_iter().map(|dim| (dim.name.clone(), dim)).collect();
        let mut index = HashMap::new();
        for (idx, tensor) in tensors.iter().enumerate() {
            for part in tensor.sides.iter().flat_map(|side| &side.0) {
                if let Part::Units { dim, .. } = part
                    && !dims.contains_key(dim)
                {
                    return Err(Error::Internal(format!("`{}` names the unknown dim `{dim}`", tensor.name())));
                }
            }
            if tensor.role != Role::Carried && index.insert((tensor.role, tensor.slot, tensor.layer), idx).is_some() {
                return Err(Error::Internal(format!("`{}` has the role of another tensor", tensor.name())));
            }
        }
        Ok(Blueprint {
            architecture: architecture.to_owned(),
            config: config.clone(),
            dims,
            tensors,
            options,
            pinned: Vec::new(),
            hidden_follows_heads: false,
            heads_divide_hidden: false,
            buffers: &[],
            reads: &[],
            index,
        })
    }

    /// The tensor with a role, where the model has one.
    pub fn find(&self, role: Role, slot: Slot, layer: Option<usize>) -> Option<&TensorSpec> {
        self.index.get(&(role, slot, layer)).and_then(|&idx| self.tensors.get(idx))
    }

    /// Size of a dim by full name.
    pub fn dim(&self, name: &str) -> Result<&Dim> {
        self.dims.get(name).ok_or_else(|| Error::unknown("dim", name, self.dims.keys().map(String::as_str)))
    }

    /// The dim that a dim partitions: the query heads of `kv_heads.3` are `heads.3`.
    pub fn carried_by(&self, name: &str) -> Option<&Dim> {
        self.dims.values().find(|dim| dim.partition.as_deref() == Some(name))
    }

    /// Size of the first dim of a kind (`mlp` stands for `mlp.0`); zero where there is none.
    pub fn size(&self, kind: &str) -> usize {
        let find = |name: &str| self.dims.get(name).map(|dim| dim.size);
        find(kind).or_else(|| find(&dim_of_layer(kind, 0))).unwrap_or(0)
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.size(DEPTH)
    }

    /// The size of every kind of dim.
    pub fn sizes(&self) -> Sizes {
        self.dims.values().map(|dim| (split_dim(&dim.name).0.to_owned(), dim.size)).collect()
    }

    /// Compares every declared tensor with the source, before anything is allocated.
    ///
    /// Returns the names in the source that the family does not know: they are not carried over.
    ///
    /// # Errors
    /// `Checkpoint` for the first tensor that is missing, of another shape, not of a floating-point type, or stored twice
    /// with different values although it is tied.
    pub fn check(&self, source: &dyn TensorSource) -> Result<Vec<String>> {
        for tensor in &self.tensors {
            let name = tensor.name();
            let Some(found) = source.info(&name) else {
                let message = format!("tensor `{name}` is missing; `{}` of this config needs it", self.architecture);
                return Err(self.config_dir_error(message));
            };
            self.check_tensor(tensor, &name, &found)?;
            self.check_ties(tensor, &name, source)?;
        }
        let known: std::collections::HashSet<String> = self.tensors.iter().map(TensorSpec::name).collect();
        let aliases: std::collections::HashSet<&String> = self.tensors.iter().flat_map(|t| &t.aliases).collect();
        let is_buffer = |name: &String| self.buffers.iter().any(|ending| name.ends_with(ending));
        let unknown = |name: &String| !known.contains(name) && !aliases.contains(name) && !is_buffer(name);
        Ok(source.names().into_iter().filter(unknown).collect())
    }

    fn check_tensor(&self, tensor: &TensorSpec, name: &str, found: &TensorInfo) -> Result<()> {
        use safetensors::Dtype::{BF16, F16, F32, F64};
        let expected: Vec<usize> =
            tensor.sides.iter().map(|side| side.len(|dim| self.dims.get(dim).map(|d| d.size))).collect();
        if expected != found.shape {
            let message = format!(
                "tensor `{name}`: expected shape {expected:?} by config.json, got {:?}; the config belongs to other weights",
                found.shape
            );
            return Err(self.config_dir_error(message));
        }
        if !matches!(found.dtype, F64 | F32 | F16 | BF16) {
            let message = format!("tensor `{name}`: expected f64, f32, f16 or bf16, got {:?}", found.dtype);
            return Err(self.config_dir_error(message));
        }
        Ok(())
    }

    /// A tied tensor that the file holds twice must hold the same both times: `transformers` would use both.
    fn check_ties(&self, tensor: &TensorSpec, name: &str, source: &dyn TensorSource) -> Result<()> {
        for alias in tensor.aliases.iter().filter(|alias| source.info(alias).is_some()) {
            if !same_values(source, name, alias)? {
                let message = format!(
                    "config.json ties `{alias}` to `{name}`, the file holds different values for them; \
                     set tie_word_embeddings to false, or leave `{alias}` out"
                );
                return Err(self.config_dir_error(message));
            }
        }
        Ok(())
    }

    fn config_dir_error(&self, message: String) -> Error {
        let path = self.config.path();
        Error::checkpoint(path.parent().unwrap_or(path), message)
    }

    /// Number of parameters at these sizes, ties counted once; kinds left out keep their size.
    pub fn n_params_at(&self, sizes: &Sizes) -> u64 {
        self.count(sizes, |_| true)
    }

    /// The same without embeddings and output head: what the papers' ratios are about on small models.
    pub fn n_non_embedding_at(&self, sizes: &Sizes) -> u64 {
        self.count(sizes, |tensor| !tensor.role.is_vocabulary())
    }

    /// Number of parameters of this very model.
    pub fn n_params(&self) -> u64 {
        self.n_params_at(&Sizes::new())
    }

    /// Bytes of the key/value cache at these sizes, two per element (f16 or bf16); 0 for encoders.
    pub fn kv_cache_bytes_at(&self, sizes: &Sizes, seq_len: usize, batch_size: usize) -> u64 {
        if !self.options.causal {
            return 0;
        }
        let size = |kind: &str| sizes.get(kind).copied().unwrap_or_else(|| self.size(kind));
        let kv_heads = if self.size(KV_HEADS) == 0 { size(HEADS) } else { size(KV_HEADS) };
        [2, 2, size(DEPTH), kv_heads, self.options.head_dim, seq_len, batch_size]
            .into_iter()
            .fold(1u64, |product, n| product.saturating_mul(n as u64))
    }

    /// Layers are alike, so layer 0 stands for all of them.
    fn count(&self, sizes: &Sizes, counts: impl Fn(&TensorSpec) -> bool) -> u64 {
        let size_of = |dim: &str| sizes.get(split_dim(dim).0).copied().or_else(|| self.dims.get(dim).map(|d| d.size));
        let n_layers = sizes.get(DEPTH).copied().unwrap_or(self.n_layers()) as u64;
        let volume =
            |tensor: &TensorSpec| tensor.sides.iter().fold(1u64, |n, side| n.saturating_mul(side.len(size_of) as u64));
        let sum = |layer: Option<usize>| -> u64 {
            self.tensors.iter().filter(|t| t.layer == layer && counts(t)).map(volume).fold(0, u64::saturating_add)
        };
        sum(None).saturating_add(n_layers.saturating_mul(sum(Some(0))))
    }
}

/// Compares two tensors in pieces: embedding tables can be larger than what else is in memory.
fn same_values(source: &dyn TensorSource, one: &str, other: &str) -> Result<bool> {
    let (Some(info), Some(other_info)) = (source.info(one), source.info(other)) else { return Ok(false) };
    if info.shape != other_info.shape {
        return Ok(false);
    }
    let n_rows = info.shape.first().copied().unwrap_or(1);
    let row_bytes = info.n_bytes().unwrap_or(0) as usize / n_rows.max(1);
    let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
    for start in (0..n_rows).step_by(step) {
        let rows = start..n_rows.min(start + step);
        if !source.read_rows(one, rows.clone())?.f_equal(&source.read_rows(other, rows)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}
