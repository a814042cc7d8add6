use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::{DEPTH, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::runs::{RunScorer, Seen};
use crate::losses::cross_entropy::negative_log_likelihood;

/// Loss on the calibration text with one layer, or a contiguous run of `span` layers, removed
/// (arXiv 2407.14679, section 2.2): mean negative log-likelihood in nats, the logarithm of the
/// perplexity, so the order is the same. What comes before the removed layers is computed once for
/// all. With a span above 1 a layer's score is that of the cheapest run that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Perplexity {
    /// Layers in a run.
    pub span: usize,
}

impl Default for Perplexity {
    fn default() -> Self {
        Perplexity { span: 1 }
    }
}

minitron_core::plugin! {
    Importance for Perplexity {
        tag: "perplexity",
        summary: "loss without a layer, or a run of layers",
        source: "arXiv 2407.14679, section 2.2 (PPL); arXiv 2408.11796",
    }
}

#[typetag::serde(name = "perplexity")]
impl Importance for Perplexity {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        (group.kind() == DEPTH).then_some(Need::Ablations { span: self.span })
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        RunScorer::boxed("perplexity", self.span, group, losses, |loss| loss)
    }
}

fn losses(observation: &Observation) -> Result<Seen> {
    let seen = observation.ablated()?;
    let loss_n = negative_log_likelihood(seen.logits_nv, seen.labels_n)?;
    Ok((
        seen.layers.start,
        loss_n.f_sum(Kind::Double)?.f_double_value(&[])?,
        loss_n.numel() as f64,
    ))
}
