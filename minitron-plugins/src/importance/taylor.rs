use std::sync::Arc;

use minitron_core::blueprint::PruneGroup;
use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::add_sums;
use super::magnitude::add_rows;
use crate::losses::cross_entropy::CrossEntropy;

/// How much the loss would change, to first order, without the unit: g · w over the weights of its coupled group, g the
/// gradient of the mean cross entropy over all calibration windows (arXiv 1906.10771; LLM-Pruner, arXiv 2305.11627).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Taylor {
    /// What the absolute value is taken of.
    pub per: TaylorTerm,
}

/// What the absolute value is taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaylorTerm {
    /// Σ |g·w|
    Weight,
    /// |Σ g·w|
    Unit,
}

impl Default for Taylor {
    fn default() -> Self {
        Taylor { per: TaylorTerm::Weight }
    }
}

minitron_core::plugin! {
    Importance for Taylor {
        tag: "taylor",
        summary: "first-order change of the loss: |gradient x weight| over a coupled group",
        source: "arXiv 1906.10771; arXiv 2305.11627",
    }
}

#[typetag::serde(name = "taylor")]
impl Importance for Taylor {
    fn need(&self, _group: &PruneGroup) -> Option<Need> {
        Some(Need::Gradients(Arc::new(CrossEntropy {})))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(Box::new(TaylorScorer { per: self.per, sums: vec![0.0; group.n_units] }))
    }
}

#[derive(Debug)]
struct TaylorScorer {
    per: TaylorTerm,
    sums: Vec<f64>,
}

impl Scorer for TaylorScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let seen = observation.weights()?;
        let gradient_ui = seen.gradient_ui.ok_or_else(|| Error::Internal("taylor was shown no gradient".into()))?;
        let product_ui = seen.weight_ui.f_mul(gradient_ui)?;
        let terms_ui = if self.per == TaylorTerm::Weight { product_ui.f_abs()? } else { product_ui };
        add_rows(&mut self.sums, seen, &terms_ui)
    }

    fn state(&self) -> Vec<f64> {
        self.sums.clone()
    }

    fn absorb(&mut self, state: &[f64]) -> Result<()> {
        add_sums(&mut self.sums, state)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        Ok(self.sums.iter().map(|sum| sum.abs() as f32).collect())
    }
}
