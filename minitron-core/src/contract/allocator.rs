use std::fmt::Debug;

use crate::error::Result;
use crate::plan::{Plan, Rankings, Space};
use crate::spec::ModelSpec;

/// Decides how much of each axis stays.
///
/// # Law
/// Every plan keeps a legal size of every dim (the framework checks), best first. It never runs a
/// model.
#[typetag::serde(tag = "type")]
pub trait Allocator: Debug + Send + Sync {
    /// Plans that meet the target, best first; at least one.
    ///
    /// # Errors
    /// `Plan` when no legal size meets it, naming the nearest.
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>>;
}
