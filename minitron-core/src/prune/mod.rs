//! From a plan to a student: index lists, the student's config, and the pruned view of a source.

mod config;
mod indices;
mod view;

pub use config::student_config;
pub use indices::{side_indices, source_layers};
pub use view::{PrunedView, Student};
