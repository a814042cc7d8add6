//! From a plan to a student: index lists, the student's config, and the pruned view of a source.

mod config;
mod indices;
mod modules;
mod view;

pub use config::{NAME, student_config};
pub use indices::{side_indices, source_layers};
pub use modules::ModuleChanges;
pub use view::{PrunedView, Student};
