use minitron_core::blueprint::PruneGroup;
use minitron_core::calibrate::{Observation, Weights};
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::add_sums;

/// Size of a unit's weights over its coupled group: every row and column that goes when the unit goes (gate, up and down of
/// a neuron; query and output projection of a head; all of a layer). No text is needed.
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
        Magnitude { norm: WeightNorm::L2 }
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
        Ok(Box::new(WeightScorer { norm: self.norm, sums: vec![0.0; group.n_units] }))
    }
}

#[derive(Debug)]
struct WeightScorer {
    norm: WeightNorm,
    sums: Vec<f64>,
}

/// Adds what each unit's row sums to.
pub(super) fn add_rows(sums: &mut [f64], seen: &Weights, terms_ui: &Tensor) -> Result<()> {
    let of_units = terms_ui.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
    let values = Vec::<f64>::try_from(&of_units)?;
    let sums_u = sums.get_mut(seen.units.clone()).unwrap_or_default();
    sums_u.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    Ok(())
}

impl Scorer for WeightScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let seen = observation.weights()?;
        let terms_ui = match self.norm {
            WeightNorm::L1 => seen.weight_ui.f_abs()?,
            WeightNorm::L2 => seen.weight_ui.f_square()?,
        };
        add_rows(&mut self.sums, seen, &terms_ui)
    }

    fn state(&self) -> Vec<f64> {
        self.sums.clone()
    }

    fn absorb(&mut self, state: &[f64]) -> Result<()> {
        add_sums(&mut self.sums, state)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let value = |sum: &f64| if self.norm == WeightNorm::L2 { sum.sqrt() } else { *sum };
        Ok(self.sums.iter().map(|sum| value(sum) as f32).collect())
    }
}
