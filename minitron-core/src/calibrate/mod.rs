//! One forward pass over calibration windows, all metrics at once, the LM head skipped.

mod observation;
mod pass;
mod scores;

pub use crate::model::Site;
pub use observation::{Observation, SequenceStat};
pub use pass::{Metric, Pass};
pub use scores::{Scores, Stated};
