//! A family's description of one model: dims, tensors and block options. Data only.
//!
//! ```text
//! dims      hidden 64   mlp.3 172   kv_heads.3 4   heads.3 8 (partition kv_heads.3)   depth 5
//! tensors   q_proj [ heads.3 x8 | hidden ]   k_proj [ kv_heads.3 x8 | hidden ]
//!           o_proj [ hidden | heads.3 x8 ]
//! ```
//!
//! An architecture plugin writes it, [`ModelSpec::check`] compares it with the file, and everything
//! further right (model, groups, plans, views, parameter counts) follows from it without knowing a
//! single tensor name.

mod absent;
mod architecture;
mod axis;
mod clients;
mod cost;
mod group;
mod layer;
mod model_folder;
mod options;
mod renaming;
mod rotary;
mod shape;
mod sites;
mod stated_rotary;
mod table;
mod unread;

pub use crate::parts::{
    Activation, Active, At, ConfigKey, Constraint, Cost, DEPTH, Dim, EXPERT_GROUPS, EXPERT_MLP,
    EXPERTS, EntryForm, HEADS, HIDDEN, KV_HEADS, MLP, Norm, NormKind, Param, ParamKind, Part,
    PatternForm, Port, Ports, ROPE_PAIRS, Role, Rotary, RotaryScaling, SHARED_MLP, Side, Site,
    SizeOf, UnitsOf, Writer, dim_of_layer, dim_of_unit, split_dim, split_unit, units,
};
pub use architecture::Architecture;
pub use axis::Axis;
pub use clients::ClientLimit;
pub use cost::{SizeMap, by_kind};
pub use group::PruneGroup;
pub use layer::{Embedding, Head, Layer, Sublayer};
pub use model_folder::{CheckpointInfo, ModelFolder};
pub use options::Options;
pub use rotary::RotaryDefaults;
pub use shape::{Shape, ShapeKeys, even_step};
pub use stated_rotary::StatedRotary;
pub use table::{Table, fixed};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::checkpoint::{Config, PIECE_BYTES, TensorInfo, TensorSource};
use crate::error::{Error, Result};

/// Target or actual sizes by kind of dim: `hidden`, `mlp`, `heads`, `kv_heads`, `rope_pairs`,
/// `depth`. Where layers differ, by dim: `mlp.3`, which goes before its kind.
pub type Sizes = BTreeMap<String, usize>;

/// Place of each tensor by what it is.
type ParamIndex = HashMap<(At, Role, ParamKind), usize>;

/// Everything that is known of a model besides its weights.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Tag of the architecture plugin that wrote it.
    pub architecture: String,
    /// The plugin itself, which describes a student's config as well; none of a spec that was put
    /// together by hand.
    pub family: Option<Arc<dyn Architecture>>,
    /// The configuration it was written from.
    pub config: Config,
    /// Named sizes, by name.
    pub dims: BTreeMap<String, Dim>,
    /// Every tensor of the model, layer after layer.
    pub params: Vec<Param>,
    /// What stands around the layers, and what they share.
    pub options: Options,
    /// What each layer is made of.
    pub layers: Vec<Layer>,
    /// Rotations that the config states, of which fewer pairs may stay.
    pub rotaries: Vec<StatedRotary>,
    /// Layers that have to stay, each with the reason.
    pub fixed_layers: Vec<(usize, &'static str)>,
    /// Entries that a student's config must state although the source may leave them to defaults.
    pub pinned: Vec<(String, serde_json::Value)>,
    /// What ties sizes to each other, or holds one.
    pub constraints: Vec<Constraint>,
    /// Endings of names under which older files hold buffers beside the weights: nothing is lost
    /// with them.
    pub buffers: &'static [&'static str],
    /// Keys of config.json that change other families and that this one reads, so that nobody is
    /// warned of them.
    pub reads: &'static [&'static str],
    index: ParamIndex,
    /// Indices of the tensors around the layers, then of each layer.
    by_layer: Vec<Vec<usize>>,
    /// First and number of the layers that are equal to each other.
    classes: Vec<(usize, usize)>,
    /// The dims without units of which a part is gone.
    optional: BTreeMap<At, Vec<String>>,
}

impl ModelSpec {
    /// Puts the parts together.
    ///
    /// # Errors
    /// `Internal` when two tensors have one role or a part names no dim: the architecture plugin is
    /// at fault.
    pub fn new(
        architecture: &str,
        config: &Config,
        dims: Vec<Dim>,
        params: Vec<Param>,
        layers: Vec<Layer>,
        options: Options,
    ) -> Result<Self> {
        let dims: BTreeMap<String, Dim> = dims
            .into_iter()
            .map(|dim| (dim.name.clone(), dim))
            .collect();
        let index = indexed(&params, &dims, &layers)?;
        let by_layer = Self::grouped(&params, layers.len());
        let optional = absent::optional(&params, &dims);
        let mut spec = ModelSpec {
            architecture: architecture.to_owned(),
            family: None,
            config: config.clone(),
            dims,
            params,
            options,
            layers,
            rotaries: Vec::new(),
            fixed_layers: Vec::new(),
            pinned: Vec::new(),
            constraints: Vec::new(),
            buffers: &[],
            reads: &[],
            index,
            by_layer,
            classes: Vec::new(),
            optional,
        };
        spec.classes = cost::classes(&spec);
        Ok(spec)
    }

    /// What a family says of a model.
    ///
    /// # Errors
    /// `Checkpoint` for what the family cannot be.
    pub fn of(family: &Arc<dyn Architecture>, info: &CheckpointInfo) -> Result<Self> {
        let spec = family.spec(info)?;
        Ok(ModelSpec {
            family: Some(Arc::clone(family)),
            ..spec
        })
    }

    /// What the same family says of another config or file.
    ///
    /// # Errors
    /// As [`ModelSpec::of`]; `Internal` without a family.
    pub fn redescribed(&self, info: &CheckpointInfo) -> Result<Self> {
        let family = self
            .family
            .as_ref()
            .ok_or_else(|| Error::Internal("a spec of no family".into()))?;
        ModelSpec::of(family, info)
    }

    /// Programs that take this family but not a model of these sizes (kinds left out keep theirs),
    /// with what helps.
    pub fn client_limits(&self, sizes: &Sizes) -> Vec<ClientLimit> {
        self.family
            .as_ref()
            .map_or_else(Vec::new, |family| family.client_limits(self, sizes))
    }

    /// The tensor with a role in some part of the model, where it has one.
    pub fn find(&self, at: At, role: Role, kind: ParamKind) -> Option<&Param> {
        self.index
            .get(&(at, role, kind))
            .and_then(|&idx| self.params.get(idx))
    }

    /// The first part of a layer that has a tensor with this role.
    pub fn part_with(&self, layer: usize, role: Role) -> Option<At> {
        let mut parts = self.sublayers(layer).map(|(at, _)| at);
        parts.find(|&at| self.find(at, role, ParamKind::Weight).is_some())
    }

    /// Size of a dim by full name.
    pub fn dim(&self, name: &str) -> Result<&Dim> {
        self.dims
            .get(name)
            .ok_or_else(|| Error::unknown("dim", name, self.dims.keys().map(String::as_str)))
    }

    /// The dim that a dim partitions: the query heads of `kv_heads.3` are `heads.3`.
    pub fn carried_by(&self, name: &str) -> Option<&Dim> {
        self.dims
            .values()
            .find(|dim| dim.partition.as_deref() == Some(name))
    }

    /// The dims of a kind, layer after layer: the one of that name, or `mlp.0`, `mlp.1`, … where
    /// they are there, or those of each expert.
    pub fn dims_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Dim> {
        let of_layers = (0..self.layers.len()).flat_map(move |layer| {
            let of_units =
                (0..).map_while(move |unit| self.dims.get(&dim_of_unit(kind, layer, unit)));
            let own = self.dims.get(&dim_of_layer(kind, layer));
            own.into_iter().chain(of_units)
        });
        self.dims.get(kind).into_iter().chain(of_layers)
    }

    /// A part of the model, and the equal parts that it has: its experts, where they are stored
    /// one by one.
    pub fn with_units(&self, at: At) -> Vec<At> {
        let of_layer = self.params_in(at.layer());
        let units = of_layer.filter(|param| param.at != at && param.at.whole() == at);
        let mut places: Vec<At> = units.map(|param| param.at).collect();
        places.push(at);
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Size of the first dim of a kind; zero where there is none.
    pub fn size(&self, kind: &str) -> usize {
        self.dims_of(kind).next().map_or(0, |dim| dim.size)
    }

    /// Whether the config can give each layer a size of this kind of its own.
    pub fn may_differ(&self, kind: &str) -> bool {
        self.dims_of(kind).next().is_some() && self.dims_of(kind).all(Dim::is_listed)
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.size(DEPTH)
    }

    /// The size of every kind of dim, or of every dim where layers differ.
    pub fn sizes(&self) -> Sizes {
        by_kind(self.dims.values().map(|dim| (dim.name.as_str(), dim.size)))
    }

    /// What the config says of each layer under a key, or implies by its index.
    pub fn pattern(&self, key: &str) -> Option<&[serde_json::Value]> {
        self.dims
            .values()
            .flat_map(|dim| &dim.stated)
            .find_map(|stated| match stated {
                ConfigKey::Pattern { path, values, .. } if path.rsplit('.').next() == Some(key) => {
                    Some(values.as_slice())
                }
                _ => None,
            })
    }

    /// Compares every declared tensor with the source, before anything is allocated.
    ///
    /// Returns the names in the source that the family does not know: they are not carried over.
    ///
    /// # Errors
    /// `Checkpoint` for the first tensor that is missing, of another shape, not of a floating-point
    /// type, or stored twice with different values although it is tied.
    pub fn check(&self, source: &dyn TensorSource) -> Result<Vec<String>> {
        for tensor in &self.params {
            let name = tensor.name();
            let Some(found) = source.info(&name) else {
                let message = format!(
                    "tensor `{name}` is missing; `{}` of this config needs it",
                    self.architecture
                );
                return Err(self.config_dir_error(message));
            };
            self.check_tensor(tensor, &name, &found)?;
            self.check_ties(tensor, &name, source)?;
        }
        let known: std::collections::HashSet<String> =
            self.params.iter().map(Param::name).collect();
        let aliases: std::collections::HashSet<&String> =
            self.params.iter().flat_map(|t| &t.aliases).collect();
        let mut unknown = source.names();
        unknown.retain(|name| {
            let is_buffer = self.buffers.iter().any(|ending| name.ends_with(ending));
            !known.contains(name) && !aliases.contains(name) && !is_buffer
        });
        Ok(unknown)
    }

    fn check_tensor(&self, tensor: &Param, name: &str, found: &TensorInfo) -> Result<()> {
        use safetensors::Dtype::{BF16, F16, F32, F64};
        let expected: Vec<usize> = tensor
            .sides
            .iter()
            .map(|side| side.len(|dim| self.dims.get(dim).map(|d| d.size)))
            .collect();
        if expected != found.shape {
            let message = format!(
                "tensor `{name}`: expected shape {expected:?} by config.json, got {:?}; the config \
                 belongs to other weights",
                found.shape
            );
            return Err(self.config_dir_error(message));
        }
        if !matches!(found.dtype, F64 | F32 | F16 | BF16) && !tensor.is_passed_through() {
            let message = format!(
                "tensor `{name}`: expected f64, f32, f16 or bf16, got {:?}",
                found.dtype
            );
            return Err(self.config_dir_error(message));
        }
        Ok(())
    }

    /// A tied tensor that the file holds twice must hold the same both times: `transformers` would
    /// use both.
    fn check_ties(&self, tensor: &Param, name: &str, source: &dyn TensorSource) -> Result<()> {
        for alias in tensor
            .aliases
            .iter()
            .filter(|alias| source.info(alias).is_some())
        {
            if !same_values(source, name, alias)? {
                let message = format!(
                    "config.json ties `{alias}` to `{name}`, the file holds different values for \
                     them; set tie_word_embeddings to false, or leave `{alias}` out"
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
}

/// Finds every tensor by its role; refuses those that do not fit the dims and layers.
fn indexed(params: &[Param], dims: &BTreeMap<String, Dim>, layers: &[Layer]) -> Result<ParamIndex> {
    let mut index = HashMap::new();
    for (idx, param) in params.iter().enumerate() {
        let mut named = param.sides.iter().flat_map(Side::dims);
        if let Some(dim) = named.find(|&dim| !dims.contains_key(dim)) {
            let message = format!("`{}` names the unknown dim `{dim}`", param.name());
            return Err(Error::Internal(message));
        }
        let role = (param.at, param.role, param.kind);
        if param.role != Role::CARRIED && index.insert(role, idx).is_some() {
            let message = format!("`{}` has the role of another tensor", param.name());
            return Err(Error::Internal(message));
        }
        if let Some((layer, sublayer)) = param.at.place()
            && layers
                .get(layer)
                .is_none_or(|layer| layer.0.len() <= sublayer)
        {
            let message = format!("`{}` belongs to a part that is not there", param.name());
            return Err(Error::Internal(message));
        }
    }
    Ok(index)
}

/// Compares two tensors in pieces: embedding tables can be larger than what else is in memory.
fn same_values(source: &dyn TensorSource, one: &str, other: &str) -> Result<bool> {
    let (Some(info), Some(other_info)) = (source.info(one), source.info(other)) else {
        return Ok(false);
    };
    if info.shape != other_info.shape {
        return Ok(false);
    }
    let n_rows = info.shape.first().copied().unwrap_or(1);
    let row_bytes = info.n_bytes().unwrap_or(0) as usize / n_rows.max(1);
    let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
    for start in (0..n_rows).step_by(step) {
        let rows = start..n_rows.min(start + step);
        if !source
            .read_rows(one, rows.clone())?
            .f_equal(&source.read_rows(other, rows)?)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}
