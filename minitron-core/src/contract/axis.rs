use std::fmt::Debug;

use crate::blueprint::Blueprint;
use crate::blueprint::PruneGroup;

/// What can be removed: the groups of interchangeable units of a model.
///
/// # Law
/// Every group names a dim of the blueprint and has as many units as it; no dim is named twice. Data out, no tensors.
#[typetag::serde(tag = "type")]
pub trait Axis: Debug + Send + Sync {
    /// The groups of a model; empty where the family has no such axis.
    fn groups(&self, blueprint: &Blueprint) -> Vec<PruneGroup>;

    /// Overrides the family's divisibility rule for student sizes; `None` keeps it.
    fn multiple_of(&self) -> Option<usize>;
}
