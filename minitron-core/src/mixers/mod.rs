//! What layers are made of: one file a kind. Nothing else in this crate asks which kind a sublayer is.
//!
//! Shape suffixes in this room: B batch, T tokens, S keys, E embed, F ffn, H query heads, G key/value heads, K head dim,
//! Q queries of a block, C keys of one, N blocks of all sequences.

mod attend;
mod attention;
mod mlp;

pub use attention::{Attention, Layout, QkNorm, SINKS};
pub use mlp::{Gate, Mlp};
