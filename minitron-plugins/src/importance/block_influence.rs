use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::runs::{RunScorer, Seen, both_ends, ends_of};

/// How much a layer, or a contiguous run of `span` layers, turns the residual stream: 1 − mean over
/// windows and tokens of cos(before, after) (arXiv 2407.14679, section 2.2; arXiv 2408.11796 for
/// runs). The cosine is taken in f64, since near 1 its complement would lose all digits. With a
/// span above 1 a layer's score is that of the cheapest run that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BlockInfluence {
    /// Layers in a run.
    pub span: usize,
}

impl Default for BlockInfluence {
    fn default() -> Self {
        BlockInfluence { span: 1 }
    }
}

minitron_core::plugin! {
    Importance for BlockInfluence {
        tag: "block_influence",
        summary: "1 - cosine between the residual stream before and after a layer, or a run of \
                  layers",
        source: "arXiv 2407.14679, section 2.2; arXiv 2408.11796",
    }
}

/// Keeps the cosine defined for a zero vector; it then counts as 0.
const EPS: f64 = 1e-12;

#[typetag::serde(name = "block_influence")]
impl Importance for BlockInfluence {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        both_ends(group, self.span)
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        RunScorer::boxed("block_influence", self.span, group, cosines, |cosine| {
            1.0 - cosine
        })
    }
}

fn cosines(observation: &Observation) -> Result<Seen> {
    let (first, before_btc, after_btc) = ends_of(observation)?;
    let x = before_btc.f_to_kind(Kind::Double)?;
    let y = after_btc.f_to_kind(Kind::Double)?;
    let cosine_bt = Tensor::f_cosine_similarity(&x, &y, -1, EPS)?;
    Ok((
        first,
        cosine_bt.f_sum(Kind::Double)?.f_double_value(&[])?,
        cosine_bt.numel() as f64,
    ))
}
