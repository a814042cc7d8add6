//! The engine of minitron: what brings models, data and plugins together.
//!
//! A whole job in a program of one's own, from random weights to a smaller model that learnt from
//! the larger one. Any folder that `transformers` saved takes the place of `model`.
//!
//! ```
//! use minitron_core::registry::Registry;
//! use minitron_engine::jobs::{self, Context, DistillOptions, PruneOptions, ScoreOptions};
//! use minitron_engine::jobs::{TrainOptions, TrainingOptions};
//!
//! # fn main() -> minitron_core::error::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let at = |name: &str| folder.path().join(name).display().to_string();
//! # let text = at("text.txt");
//! # std::fs::write(&text, "The boat was small and the lake was still. ".repeat(200)).unwrap();
//! minitron_plugins::link();
//! let registry = Registry::linked()?;
//! let context = Context::on_cpu(&registry, &minitron_plugins::BuiltIn);
//! let training = TrainingOptions {
//!     data: vec![text.parse()?],
//!     tokens: "1k".parse()?,
//!     seq_len: Some(64),
//!     ..TrainingOptions::default()
//! };
//! let (model, scores, student) = (at("model"), at("scores.safetensors"), at("student"));
//!
//! let fresh = TrainOptions {
//!     config: Some("../examples/demo/config.json".into()),
//!     training: training.clone(),
//!     ..TrainOptions::default()
//! };
//! jobs::train(&context, &fresh, model.as_ref(), false)?;
//!
//! let scoring = ScoreOptions {
//!     model: model.clone(),
//!     data: training.data.clone(),
//!     samples: 8,
//!     ..ScoreOptions::default()
//! };
//! jobs::score(&context, &scoring, scores.as_ref())?;
//!
//! let halving = PruneOptions {
//!     model: model.clone(),
//!     scores: Some(scores),
//!     ratio: Some(0.5),
//!     ..PruneOptions::default()
//! };
//! let pruned = jobs::prune(&context, &halving, student.as_ref(), false)?;
//! assert!(pruned["n_params"].as_u64() < pruned["n_params_source"].as_u64());
//!
//! let distillation = DistillOptions { teacher: model, student, training, ..Default::default() };
//! let distilled = jobs::distill(&context, &distillation, at("distilled").as_ref(), false)?;
//! assert!(distilled["loss"].as_f64().is_some_and(f64::is_finite));
//! # Ok(())
//! # }
//! ```
//!
//! Data flows one way, and each room looks left only. The core's rooms are left of all of these.
//!
//! | room | holds |
//! |---|---|
//! | [`memory`] | what the process takes |
//! | `difference` | where two JSON objects differ |
//! | [`ranks`] | several processes at one job |
//! | [`chat`] | conversations as text by the model's own template, and what the assistant said |
//! | [`data`] | text to tokens to windows, in a deterministic order |
//! | [`score`] | one forward pass, shown to the scorers of all metrics |
//! | [`train`] | objective, optimiser, schedule, loop, resume |
//! | [`jobs`] | what the commands do, one by one: score, prune, train, eval, generate, inspect |
//! | [`search`] | candidates from sizes alone, successive halving, orders |
//! | [`recipe`] | stages in a file, their inputs, the run folder, a run repeated and compared |
//! | [`compare`] | strategies side by side, as stages that rows share |
//! | [`report`] | what finished and running jobs left, as data |

pub mod chat;
pub mod compare;
pub mod data;
mod difference;
pub mod jobs;
pub mod memory;
pub mod ranks;
pub mod recipe;
pub mod report;
pub mod score;
pub mod search;
pub mod train;
