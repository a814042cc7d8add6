//! What minitron is made of: models as data, their forward pass, plans, observations, and the contracts of plugins.
//!
//! Data flows one way, and each room looks left only:
//!
//! | room | holds |
//! |---|---|
//! | [`error`] | errors by blame |
//! | [`output`] | files and folders that appear whole, one process an output |
//! | [`checkpoint`] | model folders in and out, [`TensorSource`](checkpoint::TensorSource) |
//! | [`spec`] | a family's description of one model: dims, tensors, layers, sites |
//! | [`model`] | the transformer built from a spec, with taps |
//! | [`mixers`] | what layers are made of: attention, MLP, one file a kind |
//! | [`architectures`] | presets for families |
//! | [`calibrate`] | one forward pass, observations, scores |
//! | [`plan`] | groups, rankings, legal sizes, plans |
//! | [`prune`] | plans to index lists, and the pruned view of a source |
//! | [`reconstruct`] | closed-form repair of a pruned model |
//! | [`evaluate`] | row-chunked losses over held-out windows, generation, sentence embeddings |
//! | [`contract`] | the plugin traits, one file each |
//! | [`registry`] | one lookup for all plugins |

pub mod architectures;
pub mod calibrate;
pub mod checkpoint;
pub mod contract;
pub mod conversation;
pub mod digest;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod mixers;
pub mod model;
pub mod output;
pub mod plan;
pub mod progress;
pub mod prune;
pub mod random;
pub mod reconstruct;
pub mod registry;
pub mod spec;
pub mod windows;

// For `plugin!` in crates that depend on this one alone.
#[doc(hidden)]
pub use {inventory, schemars, serde_json, typetag};
