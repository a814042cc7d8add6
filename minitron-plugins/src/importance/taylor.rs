use std::sync::Arc;

use minitron_core::calibrate::Weights;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::{Error, Result};
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::weights::WeightScorer;
use crate::losses::cross_entropy::CrossEntropy;

/// How much the loss would change, to first order, without the unit: g · w over the weights of its
/// coupled group, g the gradient of the mean cross entropy over all calibration windows (arXiv
/// 1906.10771; LLM-Pruner, arXiv 2305.11627).
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
        Taylor {
            per: TaylorTerm::Weight,
        }
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
        Ok(match self.per {
            TaylorTerm::Weight => {
                WeightScorer::boxed(group, |seen| Ok(products(seen)?.f_abs()?), |sum| sum)
            }
            TaylorTerm::Unit => WeightScorer::boxed(group, products, f64::abs),
        })
    }
}

/// g·w of every weight.
fn products(seen: &Weights) -> Result<Tensor> {
    let gradient_ui = seen
        .gradient_ui
        .ok_or_else(|| Error::Internal("taylor was shown no gradient".into()))?;
    Ok(seen.weight_ui.f_mul(gradient_ui)?)
}
