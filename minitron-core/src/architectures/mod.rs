//! Presets for families: what most decoders have in common, so that a family states what differs.

mod decoder;
mod mamba;
mod names;
mod rows;

pub use decoder::{AttentionBy, Bias, Decoder, Norms, stated_windows};
pub use mamba::{Block, MambaKeys, MambaShape};
pub use names::Names;
