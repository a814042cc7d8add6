//! The jobs behind the commands, a file or a folder each, and what they share.
//!
//! A job is its options (one struct for command line, recipe and schema) and a function that leaves
//! an artefact and returns what to tell. What all of them share is a [`Context`].

pub(crate) mod blocks;
pub(crate) mod card;
pub(crate) mod clients;
pub(crate) mod compute_type;
pub(crate) mod context;
pub(crate) mod eval;
pub(crate) mod forecast;
pub(crate) mod generate;
pub(crate) mod identity;
pub(crate) mod inspect;
pub(crate) mod marks;
pub(crate) mod prune;
pub(crate) mod score;
pub(crate) mod train;
pub(crate) mod vocabulary;
pub(crate) mod written;

pub use blocks::{BlocksOptions, blocks};
pub use compute_type::ComputeType;
pub use context::{Context, Defaults, SizeRequest};
pub use eval::{EvalOptions, NamedTask, TaskSource, eval};
pub use forecast::ForecastOptions;
pub use generate::{Chat, GenerateOptions, generate};
pub use inspect::{InspectOptions, inspect};
pub use prune::{PruneOptions, ReconstructOptions, prune};
pub use score::{ScoreOptions, score};
pub use train::{DistillOptions, TeacherOptions, TrainOptions, TrainingOptions, distill, train};
