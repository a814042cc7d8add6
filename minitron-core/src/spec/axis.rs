use std::fmt::Debug;

use super::ModelSpec;
use super::PruneGroup;
use crate::error::Result;

/// What can be removed: the groups of interchangeable units of a model.
///
/// # Law
/// Every group names a dim of the spec and has as many units as it; no dim is named twice. Data
/// out, no tensors.
#[typetag::serde(tag = "type")]
pub trait Axis: Debug + Send + Sync {
    /// The groups of a model; empty where the family has no such axis.
    ///
    /// # Errors
    /// `Recipe` when a parameter does not go with the model.
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>>;

    /// Overrides the family's divisibility rule for student sizes; `None` keeps it.
    fn multiple_of(&self) -> Option<usize>;
}
