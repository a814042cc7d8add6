//! Presets for families: what most decoders have in common, so that a family states what differs.

mod decoder;
mod experts;
mod mamba;
mod names;
mod rows;

pub use decoder::{AttentionBy, Bias, Decoder, LayerSizes, Norms, StatedDim, stated_windows};
pub use experts::{ExpertKeys, ExpertNames, Experts, sparse_layers};
pub use mamba::{Block, MambaKeys, MambaShape};
pub use names::Names;
