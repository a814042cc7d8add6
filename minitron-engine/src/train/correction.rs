//! Teacher correction beside a distillation.

use super::counts::Counts;
use super::means::PassValues;
use super::norms::GradientNorms;
use super::objective::Objective;
use super::optimizer::{AdamW, MasterWeights};
use crate::ranks::Ranks;
use minitron_core::error::Result;
use minitron_core::model::Transformer;
use minitron_core::windows::Batch;

/// Before a teacher's names in the optimiser's state.
const PREFIX: &str = "teacher/";
/// Its group there.
const GROUP: usize = 1;

/// A teacher that goes on learning from the labels of what the student is trained on, in the same
/// steps: where the text of its own training is not at hand, it first has to get used to this one
/// (arXiv 2408.11796, section 2.1, which corrects it before the distillation and finds that beside
/// it does as well).
#[derive(Debug, Clone, Copy)]
pub struct Correction<'a> {
    /// Loaded trainable; changed in place.
    pub model: &'a Transformer,
    /// Losses of labels alone.
    pub objective: &'a Objective,
    /// Its learning rate as a share of the student's.
    pub rate: f64,
}

impl Correction<'_> {
    pub(super) fn join(&self, optimizer: &mut AdamW) -> Result<()> {
        optimizer.add_group(PREFIX, self.model.parameters(), (self.rate, None))
    }

    /// Adds a batch's part of the gradient of a `whole` step; returns its part of the loss.
    pub(super) fn backward(&self, batch: &Batch, whole: Counts) -> Result<PassValues> {
        self.objective
            .backward_from(self.model, None, batch, (whole, None), &mut |_| Ok(()))
    }

    pub(super) fn gradient_norms(&self, optimizer: &AdamW) -> Result<GradientNorms> {
        optimizer.gradient_norms(GROUP)
    }

    pub(super) fn masters(&self, optimizer: &AdamW, ranks: Ranks) -> Result<MasterWeights> {
        optimizer.masters(PREFIX, ranks)
    }
}
