//! A metric, its scorers of one group, and the check of their law.

use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::{Error, Result};
use minitron_core::spec::PruneGroup;

/// A metric to compute, under the label its scores are kept by.
#[derive(Debug)]
pub struct Metric {
    /// The part before `/` in a score's name.
    pub label: String,
    /// The plugin.
    pub importance: Box<dyn Importance>,
}

impl Metric {
    /// A scorer of a group that has seen nothing yet.
    pub(super) fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        self.importance
            .scorer(group)
            .map_err(|e| e.at(format!("metric `{}`", self.label)))
    }
}

/// A metric's scorer of a group.
#[derive(Debug)]
pub(super) struct ScorerSlot {
    /// Index of the metric.
    pub metric: usize,
    pub group: PruneGroup,
    pub need: Need,
    pub scorer: Box<dyn Scorer>,
    /// The same over every n-th window alone, for resampling.
    pub folds: Vec<Box<dyn Scorer>>,
}

impl ScorerSlot {
    /// Layers in the runs without which it wants predictions.
    pub fn predicted_span(&self) -> Option<usize> {
        match self.need {
            Need::Ablations { span } => Some(span),
            _ => None,
        }
    }

    /// Layers in the runs without which it wants the last states.
    pub fn compared_span(&self) -> Option<usize> {
        match self.need {
            Need::AblatedStates { span } => Some(span),
            _ => None,
        }
    }

    /// Memory of its scorers at the end, roughly.
    pub fn state_bytes(&self) -> u64 {
        (self.scorer_bytes() * (1 + self.folds.len())) as u64
    }

    /// Memory of the scorers that see a batch.
    pub fn part_bytes(&self, batch_size: usize) -> u64 {
        (self.scorer_bytes() * (1 + self.folds.len().min(batch_size))) as u64
    }

    fn scorer_bytes(&self) -> usize {
        // A metric of activations and weights keeps its numbers per channel.
        let each = if matches!(self.need, Need::SitesAndWeights(_)) {
            self.group.block
        } else {
            1
        };
        let n_numbers = self.group.n_units * each * self.need.sites().len().max(1);
        40 * n_numbers
    }

    /// What a scorer of the slot gives: one finite number per unit.
    ///
    /// # Errors
    /// `Plugin` naming the metric that broke its law.
    pub fn checked(&self, scorer: &dyn Scorer, label: &str) -> Result<Vec<f32>> {
        let scores = scorer.finish()?;
        let PruneGroup { dim, n_units, .. } = &self.group;
        let not_finite = scores.iter().position(|score| !score.is_finite());
        let message = match not_finite {
            _ if scores.len() != *n_units => {
                format!("scored {} of {n_units} units of `{dim}`", scores.len())
            }
            Some(unit) => format!(
                "scored unit {unit} of `{dim}` as {}; the model's activations overflow or its \
                 weights are not finite",
                scores[unit]
            ),
            None => return Ok(scores),
        };
        Err(Error::Plugin {
            tag: label.to_owned(),
            origin: "importance".into(),
            message,
        })
    }
}
