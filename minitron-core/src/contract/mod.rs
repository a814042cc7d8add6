//! The plugin contracts, one file each. Nothing else in this crate is meant to be implemented
//! outside it.
//!
//! A plugin is parameters: a struct with serde, no tensors, so that a recipe, a report and the
//! plugin list print the same thing. It is declared with [`plugin!`](crate::plugin) and found
//! through the [registry](crate::registry).

mod allocator;
mod corpus;
mod evaluator;
mod importance;
mod loss;
mod state_loss;

// Those whose rooms lie further left, because what they describe is named there.
pub use crate::evaluate::Subject;
pub use crate::mixers::{Mixer, Observed, Rescale, RunMixer};
pub use crate::plugin_spec::PluginSpec;
pub use crate::reconstruct::Reconstruction;
pub use crate::spec::{Architecture, Axis};

pub use allocator::Allocator;
pub use corpus::{Corpus, Document, Documents};
pub use evaluator::{Evaluator, Measurements};
pub use importance::{Importance, Need, Scorer};
pub use loss::{LogitLoss, TeacherNeed};
pub use state_loss::{ModelPair, SitePair, StateLoss, States};
