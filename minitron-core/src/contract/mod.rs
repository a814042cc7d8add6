//! The plugin contracts, one file each. Nothing else in this crate is meant to be implemented outside it.
//!
//! A plugin is parameters: a struct with serde, no tensors, so that a recipe, a report and the plugin list print the
//! same thing. It is declared with [`plugin!`](crate::plugin) and found through the [registry](crate::registry).

mod allocator;
mod architecture;
mod axis;
mod corpus;
mod evaluator;
mod importance;
mod loss;
mod mixer;
mod plugin_spec;
mod reconstruction;
mod state_loss;

pub use allocator::Allocator;
pub use architecture::Architecture;
pub use axis::Axis;
pub use corpus::{Corpus, Document, Documents};
pub use evaluator::{Evaluator, Measurements, Subject};
pub use importance::{Importance, Need, Scorer};
pub use loss::{LogitLoss, TeacherNeed};
pub use mixer::{Mixer, Observed, Rescale, RunMixer};
pub use plugin_spec::PluginSpec;
pub use reconstruction::Reconstruction;
pub use state_loss::{SitePair, StateLoss, States};
