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
/// The stack of layers.
pub const DEPTH: &str = "depth";

/// A named size: `hidden`, `mlp.3`, `heads.3`, `kv_heads.3`, `rope_pairs`, `depth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dim {
    /// Kind, and the layer after a dot where each layer has its own.
    pub name: String,
    /// Number of units.
    pub size: usize,
    /// Where config.json states it; all of them get the student's size.
    pub stated: Vec<ConfigKey>,
    /// Legal student sizes are multiples of this, or the full size.
    pub multiple_of: usize,
    /// The kept units must be equally many for each unit of this dim (grouped queries).
    pub partition: Option<String>,
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
        !self.stated.is_empty() && keys.all(|key| matches!(key, ConfigKey::PerLayer { .. }))
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

/// `mlp.3` to `("mlp", Some(3))`, `hidden` to `("hidden", None)`.
pub fn split_dim(name: &str) -> (&str, Option<usize>) {
    match name
        .rsplit_once('.')
        .map(|(kind, layer)| (kind, layer.parse()))
    {
        Some((kind, Ok(layer_idx))) => (kind, Some(layer_idx)),
        _ => (name, None),
    }
}
