//! What libtorch has and tch does not bind.
//!
//! | module | holds |
//! |---|---|
//! | `ffi` | the C side of the shim |
//! | [`counter`] | operations and synchronisations counted |
//! | [`lists`] | operations on lists of tensors |
//! | [`memory`] | memory of tensors on the CPU |
//! | [`shell`] | values whose memory comes and goes behind what points at them |

pub mod counter;
mod ffi;
pub mod lists;
pub mod memory;
pub mod shell;

pub use counter::{OpCounter, OpCounts};
pub use lists::{
    AdamWLists, AdamWStep, foreach_copy, foreach_norm, foreach_zero, fused_adamw, read,
};
pub use memory::{map_large_tensors, use_huge_pages};
pub use shell::Shell;
