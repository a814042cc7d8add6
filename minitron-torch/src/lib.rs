//! What libtorch has and tch does not bind.
//!
//! | module | holds |
//! |---|---|
//! | `ffi` | the C side of the shim |
//! | [`counter`] | operations and synchronisations counted |
//! | [`lists`] | operations on lists of tensors |
//! | [`memory`] | memory of tensors on the CPU |

pub mod counter;
mod ffi;
pub mod lists;
pub mod memory;

pub use counter::{OpCounter, OpCounts};
pub use lists::{
    AdamWLists, AdamWStep, foreach_copy, foreach_norm, foreach_zero, fused_adamw, read,
};
pub use memory::{map_large_tensors, use_huge_pages};
