//! Scoring: what metrics ask for is shown to their scorers. Activations and predictions without some layers come from one
//! forward pass, in memory or streamed layer after layer; weights come from the file a piece at a time.

mod forward;
mod gradient;
mod observation;
mod score;
mod scorers;
mod scores;
mod streamed;
mod weights;

pub use crate::model::Site;
pub use forward::Calibration;
pub use gradient::mean_gradient;
pub use observation::{Ablated, Activations, Measured, Observation, SequenceStat, Weights};
pub use score::{ScoreInputs, score};
pub use scorers::{Metric, ScorerSet};
pub use scores::{NamedMetric, Scores};
pub use streamed::{ActivationStore, Streamed};
