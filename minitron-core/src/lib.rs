//! What minitron is made of: models as data, their forward pass, plans, observations, and the
//! contracts of plugins.
//!
//! Data flows one way, and each room looks left only:
//!
//! | room | holds |
//! |---|---|
//! | [`error`] | errors by blame |
//! | [`progress`] | where long work reports to |
//! | [`random`] | a seeded generator |
//! | [`files`] | files opened without waiting for a pipe, texts read whole up to a limit |
//! | [`digest`] | SHA-256 of inputs |
//! | [`plugin_spec`] | a plugin as it is named: tag and parameters |
//! | [`output`] | files and folders that appear whole, one process an output |
//! | [`checkpoint`] | model folders in and out, [`TensorSource`](checkpoint::TensorSource) |
//! | [`parts`] | what a model is described with: dims, tensors by role, ports, norms, rotations |
//! | [`nn`] | what mixers compute with: affine maps, norms, masks, states, weights by role |
//! | [`mixers`] | what layers are made of: attention, MLP, one file a kind; the trait |
//! | [`spec`] | a family's description of one model: dims, tensors, layers, sites |
//! | [`architectures`] | presets for families |
//! | [`model`] | the transformer built from a spec, with taps |
//! | [`conversation`] | conversations as data, read from records of the usual layouts |
//! | [`windows`] | token ids as models take them: windows, batches with what is predicted |
//! | [`calibrate`] | what scorers are shown on a text, and scores |
//! | [`plan`] | rankings, legal sizes, plans |
//! | [`prune`] | plans to index lists, and the pruned view of a source |
//! | [`reconstruct`] | the student under closed-form repair |
//! | [`evaluate`] | losses over held-out windows, likelihoods, generation, sentence embeddings |
//! | [`contract`] | the plugin traits, one file each |
//! | [`registry`] | one lookup for all plugins, the guard around each, the handshake of libraries |

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
pub mod nn;
pub mod output;
pub mod parts;
pub mod plan;
pub mod plugin_spec;
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
