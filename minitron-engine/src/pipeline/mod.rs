//! The jobs behind the commands, and recipes that string them together.
//!
//! A job is options (serde: the same on the command line and in a recipe) and a function that
//! leaves its artefact and returns what to tell. [`run`] is the one screen that a recipe's stages
//! pass through.

mod card;
mod clients;
mod compare;
mod compute_type;
mod context;
mod eval;
mod generate;
mod identity;
mod inputs;
mod inspect;
mod losses;
mod marks;
mod places;
mod planning;
mod prune;
mod prune_options;
mod recipe;
mod recipe_schema;
mod reconstruction;
mod run;
mod run_dir;
mod score;
mod search;
mod setup;
mod start;
mod student;
mod teacher_source;
mod teaching;
mod train;
mod training_options;
mod verify;
mod versions;
mod vocabulary;

pub use compare::{Check, Ratio, Row, Spec, compare};
pub use compute_type::ComputeType;
pub use context::{Context, Defaults, SizeRequest};
pub use eval::{EvalOptions, NamedTask, TaskSource, eval};
pub use generate::{Chat, GenerateOptions, generate};
pub use inspect::{InspectOptions, inspect};
pub use prune::prune;
pub use prune_options::PruneOptions;
pub use recipe::{PluginFile, Recipe, Stage, StageOptions};
pub use recipe_schema::{check_recipe, recipe_schema};
pub use reconstruction::ReconstructOptions;
pub use run::run;
pub use run_dir::RunDir;
pub(crate) use run_dir::{RunRecord, StageRecord};
pub use score::{ScoreOptions, score};
pub use search::{SearchOptions, SizeList, search};
pub use teacher_source::TeacherOptions;
pub use train::{DistillOptions, TrainOptions, distill, train};
pub use training_options::TrainingOptions;
pub use verify::verify;
