//! Named sizes.

use super::ConfigKey;

/// Kind of the residual stream's width.
pub const HIDDEN: &str = "hidden";
/// Kind of an MLP's inner width.
pub const MLP: &str = "mlp";
/// Kind of query heads (or of whole heads, where queries do not share keys and values).
pub const HEADS: &str = "heads";
/// Kind of key/value heads, where queries share them.
pub const KV_HEADS: &str = "kv_heads";
/// Kind of the pairs of channels that the rotary embedding turns together, the same ones in every
/// head of every layer: what `head_dim` is made of.
pub const ROPE_PAIRS: &str = "rope_pairs";
/// Kind of the experts of a layer.
pub const EXPERTS: &str = "experts";
/// Kind of the groups that experts fall into, each with as many.
pub const EXPERT_GROUPS: &str = "expert_groups";
/// Kind of an expert's inner width, its own in each: `expert_mlp.3.17`.
pub const EXPERT_MLP: &str = "expert_mlp";
/// Kind of the inner width of the expert that all tokens go through.
pub const SHARED_MLP: &str = "shared_mlp";
/// The stack of layers.
pub const DEPTH: &str = "depth";

/// A named size: `hidden`, `mlp.3`, `heads.3`, `kv_heads.3`, `rope_pairs`, `experts.3`,
/// `expert_mlp.3.17`, `depth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dim {
    /// Kind, and the layer after a dot where each layer has its own; after another one, the unit of
    /// the layer's experts that it is inside of.
    pub name: String,
    /// Number of units.
    pub size: usize,
    /// Where config.json states it; all of them get the student's size.
    pub stated: Vec<ConfigKey>,
    /// Legal student sizes are multiples of this, or the full size.
    pub multiple_of: usize,
    /// The kept units must be equally many for each unit of this dim (grouped queries).
    pub partition: Option<String>,
    /// Whether size 0 is legal, where somebody asks for it: the part of the layer whose tensors it
    /// measures then goes as a whole, with its norm.
    pub optional: bool,
}

impl Dim {
    /// A dim that may take any size, stated as it is under these keys.
    pub fn new(name: impl Into<String>, size: usize, config_keys: &[&str]) -> Self {
        let stated = config_keys
            .iter()
            .map(|&key| ConfigKey::scalar(key))
            .collect();
        Dim {
            name: name.into(),
            size,
            stated,
            multiple_of: 1,
            partition: None,
            optional: false,
        }
    }

    /// The same, stated in another form.
    #[must_use]
    pub fn stated(self, stated: Vec<ConfigKey>) -> Self {
        Dim { stated, ..self }
    }

    /// Whether the config can give each layer a size of its own.
    pub fn is_listed(&self) -> bool {
        let mut keys = self.stated.iter();
        !self.stated.is_empty() && keys.all(ConfigKey::is_by_layer)
    }

    /// The number that config.json has at a size: `head_dim` of rope pairs. The size itself where
    /// it is stated otherwise.
    pub fn stated_number(&self, size: usize) -> usize {
        let number = self.stated.iter().find_map(|key| match key {
            ConfigKey::Scalar { times, plus, .. } => {
                Some(size.saturating_mul(*times).saturating_add(*plus))
            }
            _ => None,
        });
        number.unwrap_or(size)
    }

    /// The same with a divisibility rule.
    #[must_use]
    pub fn multiple_of(self, multiple_of: usize) -> Self {
        Dim {
            multiple_of,
            ..self
        }
    }

    /// The same of a part that may go as a whole.
    #[must_use]
    pub fn optional(self) -> Self {
        Dim {
            optional: true,
            ..self
        }
    }

    /// The same, partitioned by another dim.
    #[must_use]
    pub fn partition(self, by: impl Into<String>) -> Self {
        Dim {
            partition: Some(by.into()),
            ..self
        }
    }
}

/// `("mlp", 3)` to `mlp.3`.
pub fn dim_of_layer(kind: &str, layer_idx: usize) -> String {
    format!("{kind}.{layer_idx}")
}

/// `("expert_mlp", 3, 17)` to `expert_mlp.3.17`.
pub fn dim_of_unit(kind: &str, layer_idx: usize, unit: usize) -> String {
    format!("{kind}.{layer_idx}.{unit}")
}

/// `mlp.3` to `("mlp", Some(3))`, `hidden` to `("hidden", None)`; of `expert_mlp.3.17` the same as
/// of `expert_mlp.3`.
pub fn split_dim(name: &str) -> (&str, Option<usize>) {
    let (kind, layer, _) = split_unit(name);
    (kind, layer)
}

/// The same with the expert: `expert_mlp.3.17` to `("expert_mlp", Some(3), Some(17))`.
pub fn split_unit(name: &str) -> (&str, Option<usize>, Option<usize>) {
    let Some((kind, place)) = name.split_once('.') else {
        return (name, None, None);
    };
    let (layer, unit) = match place.split_once('.') {
        Some((layer, unit)) => (layer, Some(unit.parse())),
        None => (place, None),
    };
    match (layer.parse(), unit.transpose()) {
        (Ok(layer), Ok(unit)) => (kind, Some(layer), unit),
        _ => (name, None, None),
    }
}
