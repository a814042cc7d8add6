use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::{DEPTH, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::runs::{RunScorer, Seen};

/// How far the last hidden state moves without a layer, or without a contiguous run of `span`
/// layers:
///
/// ```text
/// Σ ‖h − h_without‖² / Σ ‖h‖²     sums over windows and tokens, in f64
/// ```
/// h is what a head reads, after the final norm where there is one (Nemotron Elastic, arXiv
/// 2511.16664). 0 where the layers change nothing; no labels and no head are needed. What comes
/// before the removed layers is computed once for all. With a span above 1 a layer's score is that
/// of the cheapest run that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NormalisedError {
    /// Layers in a run.
    pub span: usize,
}

impl Default for NormalisedError {
    fn default() -> Self {
        NormalisedError { span: 1 }
    }
}

minitron_core::plugin! {
    Importance for NormalisedError {
        tag: "normalised_error",
        summary: "squared error of the last hidden states without a layer, or a run of layers, \
                  over their square",
        source: "Nemotron Elastic, arXiv 2511.16664",
    }
}

#[typetag::serde(name = "normalised_error")]
impl Importance for NormalisedError {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        (group.kind() == DEPTH).then_some(Need::AblatedStates { span: self.span })
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        RunScorer::boxed("normalised_error", self.span, group, squares, |error| error)
    }
}

fn squares(observation: &Observation) -> Result<Seen> {
    let seen = observation.ablated_states()?;
    let whole_bte = seen.whole_bte.f_to_kind(Kind::Double)?;
    let error_bte = whole_bte.f_sub(&seen.without_bte.f_to_kind(Kind::Double)?)?;
    Ok((
        seen.layers.start,
        sum_of_squares(&error_bte)?,
        sum_of_squares(&whole_bte)?,
    ))
}

fn sum_of_squares(x: &Tensor) -> Result<f64> {
    Ok(x.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use minitron_core::calibrate::AblatedStates;
    use tch::Device;

    use super::*;

    #[test]
    fn states_that_shrink_to_a_share_leave_the_square_of_the_rest() {
        let whole_bte = Tensor::randn([2, 3, 8], (Kind::Float, Device::Cpu));
        for (share, error) in [(1.0, 0.0), (0.5, 0.25), (0.0, 1.0), (-1.0, 4.0)] {
            let observation = Observation::AblatedStates(AblatedStates {
                layers: 1..2,
                whole_bte: &whole_bte,
                without_bte: &(&whole_bte * share),
            });
            let (first, sum, square) = squares(&observation).unwrap();
            assert_eq!(first, 1);
            assert!((sum / square - error).abs() < 1e-6, "{share}");
        }
    }
}
