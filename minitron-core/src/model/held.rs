//! Layers whose weights lie elsewhere while they do not run.

use std::fmt::Debug;

use crate::error::Result;

/// Which way a pass goes through the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first to the last.
    Forward,
    /// From the last to the first, with a gradient, which the layer's weights get theirs of.
    Backward,
}

/// Where a model's layers keep their weights, if not with themselves.
pub trait LayerWeights: Debug {
    /// Brings a layer's weights to its tensors. The next one that way may be brought meanwhile:
    /// every pass goes through all layers.
    ///
    /// # Errors
    /// As bringing does.
    fn bring(&self, layer_idx: usize, direction: Direction) -> Result<()>;

    /// Whoever asked for them has done with them.
    fn leave(&self, layer_idx: usize);

    /// Bytes that all layers' weights take at most, while they wait and while some are brought.
    fn n_bytes(&self) -> u64;
}

/// A layer whose weights are there for as long as this lives.
#[derive(Debug)]
#[must_use = "the weights may be gone when this is"]
pub struct Held<'m> {
    weights: Option<&'m dyn LayerWeights>,
    layer_idx: usize,
}

impl<'m> Held<'m> {
    pub(super) fn bring(
        weights: Option<&'m dyn LayerWeights>,
        layer_idx: usize,
        direction: Direction,
    ) -> Result<Self> {
        if let Some(weights) = weights {
            weights.bring(layer_idx, direction)?;
        }
        Ok(Held { weights, layer_idx })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(weights) = self.weights {
            weights.leave(self.layer_idx);
        }
    }
}
