//! Closed-form repair of a pruned model: the student under treatment, and what a healing may ask for.
//!
//! Nothing is changed in place. A replaced weight lies over the pruned view, a turned residual stream under it:
//!
//! ```text
//! source -> RotatedView (where a healing turned the stream) -> PrunedView -> HealedView (replaced weights)
//! ```
//!
//! Shape suffixes in this room: B batch, T tokens, N tokens of all windows, E residual channels, C inputs of a projection.

mod compensation;
mod joint;
mod norm_inputs;
mod patient;
mod rotated;
mod streams;
mod view;

pub use joint::{Joint, Place};
pub use patient::{Case, Patient};
pub use rotated::RotatedView;
pub use streams::Aim;
pub use view::HealedView;
