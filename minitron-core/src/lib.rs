//! The rooms of minitron: everything but the strategies.
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
//! | [`chat`] | conversations as text by the model's own template, and what the assistant said |
//! | [`data`] | text to tokens to windows, in a deterministic order |
//! | [`calibrate`] | one forward pass, observations, scores |
//! | [`plan`] | groups, rankings, legal sizes, plans |
//! | [`prune`] | plans to index lists, and the pruned view of a source |
//! | [`reconstruct`] | closed-form repair of a pruned model |
//! | [`train`] | objective, optimiser, schedule, loop, resume |
//! | [`evaluate`] | row-chunked losses over held-out windows, generation, sentence embeddings |
//! | [`search`] | candidates from sizes alone, successive halving, orders |
//! | [`pipeline`] | the jobs behind the commands, recipes, run folders |
//! | [`report`] | what finished and running jobs left, as data |
//! | [`contract`] | the plugin traits, one file each |
//! | [`registry`] | one lookup for all plugins |

pub mod architectures;
pub mod calibrate;
pub mod chat;
pub mod checkpoint;
pub mod contract;
pub mod data;
pub mod digest;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod memory;
pub mod mixers;
pub mod model;
pub mod output;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod prune;
pub mod random;
pub mod reconstruct;
pub mod registry;
pub mod report;
pub mod search;
pub mod spec;
pub mod train;

// For `plugin!` in crates that depend on this one alone.
#[doc(hidden)]
pub use {inventory, schemars, serde_json, typetag};
