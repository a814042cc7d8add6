use std::any::Any;
use std::fmt::Debug;

use crate::blueprint::PruneGroup;
use crate::calibrate::{Observation, Site};
use crate::error::Result;

/// A metric: how much each unit of a group matters, from what a calibration pass shows.
///
/// # Law
/// A group's scorer returns one finite f32 per unit, higher = keep, that does not depend on how windows were batched
/// (1e-5 relative). It sees each watched site of each batch exactly once, in forward order.
#[typetag::serde(tag = "type")]
pub trait Importance: Debug + Send + Sync {
    /// The sites to be shown for this group; none where this metric does not score such groups.
    fn watch(&self, group: &PruneGroup) -> Vec<Site>;

    /// State for one group and one pass.
    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>>;
}

/// The state of one metric over one group during one pass.
pub trait Scorer: Debug + Send {
    /// Takes in one site of one batch, [B, T, C].
    fn observe(&mut self, observation: &Observation) -> Result<()>;

    /// Takes in what another scorer of the same metric and group saw (other ranks, a resumed pass).
    ///
    /// # Errors
    /// `Internal` when `other` is of another type.
    fn merge(&mut self, other: &dyn Scorer) -> Result<()>;

    /// One score per unit.
    fn finish(&self) -> Result<Vec<f32>>;

    /// For [`Scorer::merge`].
    fn as_any(&self) -> &dyn Any;
}
