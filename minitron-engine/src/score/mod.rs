//! Scoring: what metrics ask for is shown to their scorers. Activations and predictions without
//! some layers come from one forward pass, in memory or streamed layer after layer; weights come
//! from the file a piece at a time.

mod adding;
mod forward;
mod gradient;
mod parts;
mod pass;
mod scorers;
mod scoring;
mod slot;
mod streamed;
mod waiting;
mod weights;

pub use gradient::mean_gradient;
pub use scorers::ScorerSet;
pub use scoring::{ScoreInputs, score};
pub use slot::Metric;
pub use streamed::{ActivationStore, Streamed};
