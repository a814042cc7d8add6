//! What layers are made of: one file a kind. Nothing else in this crate asks which kind a sublayer
//! is.
//!
//! Shape suffixes in this room: B batch, T tokens, S keys, E embed, F ffn, H query heads, G
//! key/value heads, K head dim, Q queries of a block, C keys of one, N blocks (in experts: tokens)
//! of all sequences, X experts, R experts of a token.

mod absent;
mod attend;
mod attention;
mod convolution;
mod layout;
mod lots;
mod mamba2;
mod mixer;
mod mlp;
mod moe;
mod pairs;
mod router;
mod scan;
mod stacked;

pub use absent::Absent;
pub use attention::{Attention, SINKS};
pub use layout::{Layout, QkNorm};
pub use mamba2::{
    MAMBA_CHANNELS, MAMBA_CONVOLUTION, MAMBA_DECAY, MAMBA_GROUPS, MAMBA_HEAD_DIM, MAMBA_HEADS,
    MAMBA_INPUT, MAMBA_MIXED, MAMBA_NORM, MAMBA_OUTPUT, MAMBA_SKIP, MAMBA_STEP, Mamba2,
};
pub use mixer::{Mixer, Observed, Rescale, RunMixer};
pub use mlp::{Gate, Mlp};
pub use moe::{
    EXPERT_GATES, EXPERT_OUTPUTS, EXPERT_ROUTED_SUMS, EXPERT_SUMS, Moe, SHARED, SHARED_GATE,
    Shared, Storage, WEIGHED,
};
pub use router::{CORRECTION, Groups, ROUTER, Router, Selection};
pub use stacked::{Clamped, EXPERTS_DOWN, EXPERTS_GATE_UP};

use std::any::Any;

/// Whether a mixer is of this crate: what goes wrong in others is their library's fault.
pub(crate) fn is_built_in(mixer: &dyn Mixer) -> bool {
    let mixer: &dyn Any = mixer;
    let is_dense = mixer.is::<Attention>() || mixer.is::<Mlp>() || mixer.is::<Absent>();
    is_dense || mixer.is::<Mamba2>() || mixer.is::<Moe>()
}
