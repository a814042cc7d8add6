//! What mixers compute with: affine maps, norms, rotations, what a batch brings beside its stream,
//! and how weights reach them.
//!
//! Shape suffixes in this room: B batch, T tokens, E embed, I inputs, O outputs, V vocab, N rows.

mod context;
mod layers;
mod part_weights;
mod products;
mod rope;
mod rows;
mod state;
mod tap;

pub use context::{Input, MixerContext, blocks};
pub use layers::{Linear, NormLayer, activate};
pub use part_weights::{PartWeights, ReadWeights};
pub use rope::Rope;
pub use rows::{over_shared_ids, row_chunks};
pub use state::MixerState;
pub use tap::{NoTap, PortTap, Tap, show};
