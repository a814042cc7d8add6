//! Named sizes.

/// Kind of the residual stream's width.
pub const HIDDEN: &str = "hidden";
/// Kind of an MLP's inner width.
pub const MLP: &str = "mlp";
/// Kind of query heads (or of whole heads, where queries do not share keys and values).
pub const HEADS: &str = "heads";
/// Kind of key/value heads, where queries share them.
pub const KV_HEADS: &str = "kv_heads";
/// Kind of the pairs of channels that the rotary embedding turns together, the same ones in every head of every layer: what
/// `head_dim` is made of.
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
    pub config_keys: Vec<String>,
    /// What they state of it.
    pub stated: Stated,
    /// Legal student sizes are multiples of this, or the full size.
    pub multiple_of: usize,
    /// The kept units must be equally many for each unit of this dim (grouped queries).
    pub partition: Option<String>,
}

/// What a config states of a size n: `times` · n + `plus`. A head has two channels for each pair, and those that do not turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stated {
    /// Factor.
    pub times: usize,
    /// What is there whatever the size.
    pub plus: usize,
}

impl Default for Stated {
    fn default() -> Self {
        Stated { times: 1, plus: 0 }
    }
}

impl Stated {
    /// Of a size.
    pub fn of(self, size: usize) -> usize {
        size.saturating_mul(self.times).saturating_add(self.plus)
    }
}

impl Dim {
    /// A dim that may take any size.
    pub fn new(name: impl Into<String>, size: usize, config_keys: &[&str]) -> Self {
        let config_keys = config_keys.iter().map(|&key| key.to_owned()).collect();
        Dim { name: name.into(), size, config_keys, stated: Stated::default(), multiple_of: 1, partition: None }
    }

    /// The same where the config states another number that follows from the size.
    #[must_use]
    pub fn stated(self, stated: Stated) -> Self {
        Dim { stated, ..self }
    }

    /// The same with a divisibility rule.
    #[must_use]
    pub fn multiple_of(self, multiple_of: usize) -> Self {
        Dim { multiple_of, ..self }
    }

    /// The same, partitioned by another dim.
    #[must_use]
    pub fn partition(self, by: impl Into<String>) -> Self {
        Dim { partition: Some(by.into()), ..self }
    }
}

/// `("mlp", 3)` to `mlp.3`.
pub fn dim_of_layer(kind: &str, layer_idx: usize) -> String {
    format!("{kind}.{layer_idx}")
}

/// `mlp.3` to `("mlp", Some(3))`, `hidden` to `("hidden", None)`.
pub fn split_dim(name: &str) -> (&str, Option<usize>) {
    match name.rsplit_once('.').map(|(kind, layer)| (kind, layer.parse())) {
        Some((kind, Ok(layer_idx))) => (kind, Some(layer_idx)),
        _ => (name, None),
    }
}
