//! What scorers are shown of a model on its calibration text, and what they make of it.

mod calibration;
mod observation;
mod scores;
mod world;

pub use crate::model::Site;
pub use calibration::Calibration;
pub use observation::{
    Ablated, AblatedStates, Activations, Measured, Observation, SequenceStat, Weights, to_vec,
};
pub use scores::{NamedMetric, Scores};
pub use world::{Alone, World};
