use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::channels::{self, ChannelScorer};

/// What a bias cannot make up for when a unit goes: Σ over its channels c of Var(x_c) · ‖W_·c‖²,
/// the variance over all calibration tokens, W the projection that reads them. A channel that
/// hardly changes is replaced by its mean, so this goes with the reconstruction
/// `bias_compensation`. Neurons and heads only.
///
/// FLAP (arXiv 2312.11983), "weighted input feature variance". Where it lets layers have different
/// widths by standardising scores over all of them, a Hugging Face config has one width, so units
/// are ranked inside their layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fluctuation {}

minitron_core::plugin! {
    Importance for Fluctuation {
        tag: "fluctuation",
        summary: "variance of activations x squared weights, of neurons and heads",
        source: "FLAP, arXiv 2312.11983",
    }
}

#[typetag::serde(name = "fluctuation")]
impl Importance for Fluctuation {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        channels::need(group)
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(ChannelScorer::boxed(
            group,
            |weight| Ok(weight.f_square()?),
            |seen| {
                let n = seen.n.max(1.0);
                // Rounding leaves a constant channel a hair below nothing.
                (seen.sum_squares / n - (seen.sum / n).powi(2)).max(0.0) * seen.weight
            },
        ))
    }
}
