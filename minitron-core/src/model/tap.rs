//! Places inside the model where activations can be read.

use tch::Tensor;

use crate::error::Result;

/// A place to observe, by layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Residual stream before the layer, [B, T, E].
    BlockInput(usize),
    /// What attention reads: the norm's output in pre-norm families, [B, T, E].
    AttentionInput(usize),
    /// Queries before they are rotated, heads in order, [B, T, H·K].
    Query(usize),
    /// Keys before they are rotated, [B, T, G·K].
    Key(usize),
    /// Values [B, T, G·K].
    Value(usize),
    /// Input of the attention's output projection, heads in order, [B, T, H·K].
    AttentionHeads(usize),
    /// Residual stream between the layer's attention and its MLP, [B, T, E].
    BlockMiddle(usize),
    /// What the MLP reads: the norm's output in pre-norm families, [B, T, E].
    MlpInput(usize),
    /// The activated projection before its non-linearity, [B, T, F].
    MlpPreActivation(usize),
    /// Input of the MLP's second projection, [B, T, F].
    MlpNeurons(usize),
    /// Residual stream after the layer, [B, T, E].
    BlockOutput(usize),
    /// Residual stream after layer `first + span − 1`, beside the one before layer `first`; a calibration pass alone
    /// shows it.
    Across {
        /// First layer of the run.
        first: usize,
        /// Layers in the run.
        span: usize,
    },
    /// The last hidden state, after the final norm where the family has one, [B, T, E].
    Last,
}

impl Site {
    /// The state after `layer_idx` as the next norm gives it out (in post-norm families the layer's own): what the next layer's
    /// attention reads, or the last hidden state.
    pub fn normed_output(layer_idx: usize, n_layers: usize) -> Site {
        if layer_idx + 1 < n_layers { Site::AttentionInput(layer_idx + 1) } else { Site::Last }
    }
}

/// Something that looks on during a forward pass.
pub trait Tap {
    /// Whether this site is wanted; asked before every [`Tap::see`].
    fn wants(&self, site: Site) -> bool;

    /// Shown the site's activations, in forward order.
    fn see(&mut self, site: Site, x: &Tensor) -> Result<()>;
}

/// Looks at nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn see(&mut self, _site: Site, _x: &Tensor) -> Result<()> {
        Ok(())
    }
}
