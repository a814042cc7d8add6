//! Scoring: what metrics ask for is shown to their scorers. Activations and predictions without some layers come from one
//! forward pass, in memory or streamed layer after layer; weights come from the file a piece at a time.

mod gradient;
mod observation;
mod pass;
mod score;
mod scores;
mod stream;
mod walk;
mod weigh;

pub use crate::model::Site;
pub use gradient::mean_gradient;
pub use observation::{Ablated, Activations, Measured, Observation, SequenceStat, Weights};
pub use pass::{Metric, Pass};
pub use score::{ScoreInputs, score};
pub use scores::{Scores, Stated};
pub use stream::{Spill, Streamed};
pub use walk::Calibration;
