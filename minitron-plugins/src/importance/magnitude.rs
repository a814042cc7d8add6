use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::weights::WeightScorer;

/// Size of a unit's weights over its coupled group: every row and column that goes when the unit
/// goes (gate, up and down of a neuron; query and output projection of a head; all of a layer). No
/// text is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Magnitude {
    /// How weights become one number.
    pub norm: WeightNorm,
}

/// How weights become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightNorm {
    /// Σ |w|
    L1,
    /// sqrt(Σ w²)
    L2,
}

impl Default for Magnitude {
    fn default() -> Self {
        Magnitude {
            norm: WeightNorm::L2,
        }
    }
}

minitron_core::plugin! {
    Importance for Magnitude {
        tag: "magnitude",
        summary: "norm of the weights of a coupled group",
        source: "Han et al. 2015 (arXiv 1506.02626); arXiv 2301.12900 for coupled groups",
    }
}

#[typetag::serde(name = "magnitude")]
impl Importance for Magnitude {
    fn need(&self, _group: &PruneGroup) -> Option<Need> {
        Some(Need::Weights)
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(match self.norm {
            WeightNorm::L1 => {
                WeightScorer::boxed(group, |seen| Ok(seen.weight_ui.f_abs()?), |sum| sum)
            }
            WeightNorm::L2 => {
                WeightScorer::boxed(group, |seen| Ok(seen.weight_ui.f_square()?), f64::sqrt)
            }
        })
    }
}
