use std::fmt::Debug;
use std::sync::Arc;

use super::{Evaluator, LogitLoss};
use crate::calibrate::{Observation, Site};
use crate::error::Result;
use crate::spec::PruneGroup;

/// A metric: how much each unit of a group matters, from what it asks to be shown.
///
/// # Law
/// A group's scorer returns one finite f32 per unit, higher = keep, that does not depend on how
/// windows were batched (1e-5 relative). It is shown exactly what it needs, each thing once.
#[typetag::serde(tag = "type")]
pub trait Importance: Debug + Send + Sync {
    /// What to show for this group; `None` where this metric does not score such groups.
    fn need(&self, group: &PruneGroup) -> Option<Need>;

    /// State for one group and one pass.
    ///
    /// # Errors
    /// `Recipe` when a parameter does not go with the group (a run of more layers than there are).
    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>>;
}

/// What a metric asks to be shown for a group. Metrics that ask for sites or ablations share one
/// pass.
#[derive(Debug)]
pub enum Need {
    /// [`Observation::Activations`] of these sites, in forward order within a batch; an empty list
    /// asks for nothing.
    Sites(Vec<Site>),
    /// [`Observation::Weights`]: every weight that carries the group's units.
    Weights,
    /// Both: first the activations of these sites, over all windows, then the weights.
    SitesAndWeights(Vec<Site>),
    /// The same, with the gradient of this loss, the mean over all predictions of the calibration
    /// windows.
    Gradients(Arc<dyn LogitLoss>),
    /// [`Observation::Ablated`]: predictions on the calibration windows without each run of so many
    /// layers.
    Ablations {
        /// Layers in a run.
        span: usize,
    },
    /// [`Observation::AblatedStates`]: the last hidden states of the calibration windows without
    /// each run of so many layers, beside those of the whole model. No head is needed.
    AblatedStates {
        /// Layers in a run.
        span: usize,
    },
    /// [`Observation::Measured`]: a measurement of the model without each run of so many layers.
    Measurements {
        /// Layers in a run.
        span: usize,
        /// What measures.
        evaluator: Box<dyn Evaluator>,
        /// Which of its values.
        name: &'static str,
    },
}

impl Need {
    /// The sites whose activations are asked for.
    pub fn sites(&self) -> &[Site] {
        match self {
            Need::Sites(sites) | Need::SitesAndWeights(sites) => sites,
            _ => &[],
        }
    }
}

/// The state of one metric over one group during one pass.
///
/// What a batch shows of activations and ablations goes to a scorer of its own, whose state is then
/// merged into the pass's; so it does not matter which process saw the batch.
pub trait Scorer: Debug + Send {
    /// Takes in one thing that [`Importance::need`] asked for.
    ///
    /// # Errors
    /// `Internal` when it is shown anything else ([`Observation::activations`] and its siblings say
    /// so).
    fn observe(&mut self, observation: &Observation) -> Result<()>;

    /// All that was seen, as numbers: what a run that was interrupted goes on from.
    fn state(&self) -> Vec<f64>;

    /// Takes in what another scorer of the same metric and group saw (an earlier run, other ranks,
    /// a resample). Weights are the same whoever saw them: what follows from them is taken over,
    /// not added.
    ///
    /// # Errors
    /// `Internal` when the numbers cannot be such a state.
    fn merge(&mut self, state: &[f64]) -> Result<()>;

    /// One score per unit.
    fn finish(&self) -> Result<Vec<f32>>;
}
