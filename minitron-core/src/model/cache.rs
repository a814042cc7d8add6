//! Keys and values of the tokens seen so far, for generation.

use tch::Tensor;

use crate::error::{Error, Result};

/// One entry per layer; all sequences of a batch have the same length.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    len: i64,
}

/// Keys and values of one layer.
#[derive(Debug, Default)]
pub struct LayerCache {
    entries: Option<(Tensor, Tensor)>,
}

impl Cache {
    /// Empty, for a model of so many layers.
    pub fn new(n_layers: usize) -> Self {
        Cache { layers: (0..n_layers).map(|_| LayerCache::default()).collect(), len: 0 }
    }

    /// Number of tokens held.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sequences of these rows \[R\] alone, in their order, each as often as it is named.
    pub fn rows(&self, rows: &Tensor) -> Result<Cache> {
        let chosen = |layer: &LayerCache| {
            let entries = layer.entries.as_ref();
            let entries = entries
                .map(|(keys, values)| Ok::<_, Error>((keys.f_index_select(0, rows)?, values.f_index_select(0, rows)?)));
            Ok(LayerCache { entries: entries.transpose()? })
        };
        Ok(Cache { layers: self.layers.iter().map(chosen).collect::<Result<_>>()?, len: self.len })
    }

    pub(super) fn layer(&mut self, layer_idx: usize) -> Option<&mut LayerCache> {
        self.layers.get_mut(layer_idx)
    }

    pub(super) fn advance(&mut self, n_tokens: i64) {
        self.len += n_tokens;
    }
}

impl LayerCache {
    /// Appends keys and values [B, G, T, K] and returns all of them.
    pub(super) fn extend(&mut self, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor)> {
        let joined = match &self.entries {
            Some((keys, values)) => (Tensor::f_cat(&[keys, key], 2)?, Tensor::f_cat(&[values, value], 2)?),
            None => (key.shallow_clone(), value.shallow_clone()),
        };
        self.entries = Some((joined.0.shallow_clone(), joined.1.shallow_clone()));
        Ok(joined)
    }
}
