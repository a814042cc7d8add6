//! What mixers keep of the tokens seen so far, for generation.

use tch::Tensor;

use super::Transformer;
use crate::error::Result;
use crate::nn::MixerState;

/// The states of every layer's mixers; all sequences of a batch have the same length.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Vec<MixerState>>,
    len: i64,
}

impl Cache {
    /// Empty, for a model.
    pub fn new(model: &Transformer) -> Self {
        let mut layers = Vec::with_capacity(model.blocks.len());
        for block in &model.blocks {
            layers.push(
                (0..block.n_parts())
                    .map(|_| MixerState::default())
                    .collect(),
            );
        }
        Cache { layers, len: 0 }
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
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            layers.push(
                layer
                    .iter()
                    .map(|state| state.rows(rows))
                    .collect::<Result<_>>()?,
            );
        }
        Ok(Cache {
            layers,
            len: self.len,
        })
    }

    pub(super) fn layer(&mut self, layer_idx: usize) -> Option<&mut [MixerState]> {
        self.layers.get_mut(layer_idx).map(Vec::as_mut_slice)
    }

    pub(super) fn advance(&mut self, n_tokens: i64) {
        self.len += n_tokens;
    }
}
