//! How a model computes, as data.

use super::layer::{Embedding, Head};
use crate::parts::Norm;

/// What all layers of a model share, and what stands around them.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Each position sees only itself and earlier ones.
    pub causal: bool,
    /// Longest sequence.
    pub max_positions: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// The token table serves as output projection.
    pub tied: bool,
    /// What comes before the layers.
    pub embedding: Embedding,
    /// The norm after the last layer.
    pub final_norm: Option<Norm>,
    /// What makes logits; none for encoders whose output is the last hidden state.
    pub head: Option<Head>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}
