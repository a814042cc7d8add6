//! One plugin of every kind, in a library that is opened while running:
//!
//! ```text
//! minitron --plugin target/release/libminitron_examples.so plugins list
//! ```
//! `minitron plugins new KIND DIR` starts from these files.

mod glm4;
mod half_mlp;
mod log_cosh;
mod mean_power;
mod mlp_tiles;
mod norm_keeping;
mod paragraphs;

mod skew_kl;
mod token_accuracy;

minitron_core::export_plugins!();
