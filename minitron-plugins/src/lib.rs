//! The built-in strategies, one file each. Adding one is a file and a `mod` line; nothing else names it.

mod allocators;
mod architectures;
mod axes;
mod corpora;
mod defaults;
mod dynamic;
mod evaluators;
mod healings;
mod importance;
mod losses;
mod script;

pub use defaults::BuiltIn;
pub use dynamic::{check_opened, find, handshake, make_cuda_visible, open};

/// Keeps this crate linked: registration happens at start, in code that nobody calls by name.
pub fn link() {}
