//! The built-in strategies, one file each. Adding one is a file and a `mod` line; nothing else
//! names it.

// Formulas in tests read as in papers; what ships is checked without them.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod allocators;
mod architectures;
mod axes;
mod corpora;
mod defaults;
mod dynamic;
mod evaluators;
mod importance;
pub mod laws;
mod losses;
mod reconstructions;
mod script;

pub use defaults::BuiltIn;
pub use dynamic::{find, handshake, make_cuda_visible, objection, open};
pub use laws::check_opened;

/// Keeps this crate linked: registration happens at start, in code that nobody calls by name.
pub fn link() {}
