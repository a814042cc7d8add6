//! Named sizes.

/// Kind of the residual stream's width.
pub const HIDDEN: &str = "hidden";
/// Kind of an MLP's inner width.
pub const MLP: &str = "mlp";
/// Kind of query heads (or of whole heads, where queries do not share keys and values).
pub const HEADS: &str = "heads";
/// Kind of key/value heads, where queries share them.
pub const KV_HEADS: &str = "kv_heads";
/// The stack of layers.
pub const DEPTH: &str = "depth";

/// A named size: `hidden`, `mlp.3`, `heads.3`, `kv_heads.3`, `depth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dim {
    /// Kind, and the layer after a dot where each layer has its own.
    pub name: String,
    /// Number of units.
    pub size: usize,
    /// Where config.json states it; all of them get the student's size.
    pub config_keys: Vec<String>,
    /// Legal student sizes are multiples of this, or the full size.
    pub multiple_of: usize,
    /// The kept units must be equally many for each unit of this dim (grouped queries).
    pub partition: Option<String>,
}

impl Dim {
    /// A dim that may take any size.
    pub fn new(name: impl Into<String>, size: usize, config_keys: &[&str]) -> Self {
        let config_keys = config_keys.iter().map(|&key| key.to_owned()).collect();
        Dim { name: name.into(), size, config_keys, multiple_of: 1, partition: None }
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
