use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::runs::{RunScorer, Seen, both_ends, ends_of};

/// How much a layer, or a contiguous run of `span` layers, makes the residual stream grow: the mean
/// over windows and tokens of ‖after‖₂ / ‖before‖₂, in f64 (Ministral 3, arXiv 2601.08584). Layers
/// that add little go first. With a span above 1 a layer's score is that of the cheapest run that
/// holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NormRatio {
    /// Layers in a run.
    pub span: usize,
}

impl Default for NormRatio {
    fn default() -> Self {
        NormRatio { span: 1 }
    }
}

minitron_core::plugin! {
    Importance for NormRatio {
        tag: "norm_ratio",
        summary: "norm of the residual stream after a layer, or a run of layers, over its norm \
                  before",
        source: "Ministral 3, arXiv 2601.08584",
    }
}

/// Keeps the ratio finite for a zero vector.
const EPS: f64 = 1e-12;

#[typetag::serde(name = "norm_ratio")]
impl Importance for NormRatio {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        both_ends(group, self.span)
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        RunScorer::boxed("norm_ratio", self.span, group, ratios, |ratio| ratio)
    }
}

fn ratios(observation: &Observation) -> Result<Seen> {
    let (first, before_btc, after_btc) = ends_of(observation)?;
    let ratio_bt = norms(after_btc)?.f_div(&norms(before_btc)?.f_clamp_min(EPS)?)?;
    Ok((
        first,
        ratio_bt.f_sum(Kind::Double)?.f_double_value(&[])?,
        ratio_bt.numel() as f64,
    ))
}

/// Of each token's state, [B, T].
fn norms(x_btc: &Tensor) -> Result<Tensor> {
    let squares = x_btc.f_to_kind(Kind::Double)?.f_square()?;
    Ok(squares
        .f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Double)?
        .f_sqrt()?)
}

#[cfg(test)]
mod tests {
    use minitron_core::calibrate::Activations;
    use tch::{Device, Tensor};

    use super::*;

    #[test]
    fn a_layer_that_doubles_the_stream_has_two_and_one_that_leaves_it_one() {
        let x_btc = Tensor::randn([2, 3, 8], (Kind::Float, Device::Cpu));
        for (factor, is) in [(1.0, 1.0), (2.0, 2.0), (-0.5, 0.5)] {
            let after_btc = &x_btc * factor;
            let seen = Observation::Activations(Activations::across(1, 1, &x_btc, &after_btc));
            let (first, sum, count) = ratios(&seen).unwrap();
            assert_eq!((first, count), (1, 6.0));
            assert!((sum / count - is).abs() < 1e-7, "{factor}: {}", sum / count);
        }
    }
}
