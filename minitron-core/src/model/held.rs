//! Layers whose weights lie elsewhere while they do not run.

use std::fmt::Debug;

use crate::error::Result;

/// Where a model's layers keep their weights, if not with themselves. All layers of a pass are
/// brought in the order in which they run.
pub trait LayerWeights: Debug {
    /// Brings a layer's weights to its tensors; `next` is the layer that will be asked for after
    /// it, which may be brought meanwhile.
    ///
    /// # Errors
    /// As bringing does.
    fn bring(&self, layer_idx: usize, next: Option<usize>) -> Result<()>;

    /// Whoever asked for them has done with them.
    fn leave(&self, layer_idx: usize);
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
        next: Option<usize>,
    ) -> Result<Self> {
        if let Some(weights) = weights {
            weights.bring(layer_idx, next)?;
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
