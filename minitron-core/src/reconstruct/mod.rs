//! Closed-form repair of a pruned model: the student under reconstruction, and what a
//! reconstruction may ask for.
//!
//! Nothing is changed in place. A replaced weight lies over the pruned view, a turned residual
//! stream under it:
//!
//! ```text
//! source -> RotatedView     where a reconstruction turned the stream
//!        -> PrunedView
//!        -> ReconstructedView     replaced weights
//! ```
//!
//! Shape suffixes in this room: B batch, T tokens, N tokens of all windows, E residual channels, C
//! inputs of a projection.

mod ahead;
mod aim;
mod biases;
mod compensation;
mod contributions;
mod editor;
mod embedded;
mod half;
mod held_out;
mod kept;
mod logits;
mod norm_inputs;
mod projections;
mod reconstruction;
mod rotated;
mod shown;
mod store;
mod stream_state;
mod streams;
mod taken;
mod taking;
mod tied_head;
mod trials;
mod turning;
mod unit_outputs;
mod unit_writers;
mod units;
mod view;
mod weights;

pub use contributions::SeenUnits;
pub use editor::{ReconstructInputs, StudentEditor};
pub use held_out::HeldOutMeans;
pub use logits::{FactorFit, LastStates, last_states_bytes};
pub use norm_inputs::{Look, NormSums};
pub use projections::{Fit, HELD_OUT, Moments, ProjectionSet, ProjectionStats};
pub use reconstruction::Reconstruction;
pub use rotated::RotatedView;
pub use stream_state::LayerInputs;
pub use streams::{Reference, Sweep};
pub use taken::{KeptUnits, Replaced, TakenUnits};
pub use tied_head::TiedHead;
pub use trials::{Distance, LayerTrials, Trial};
pub use unit_outputs::UnitOutputs;
pub use units::{UnitWeight, WholeUnits};
pub use view::ReconstructedView;
pub use weights::ROWS_AT_ONCE;
