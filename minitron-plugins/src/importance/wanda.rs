use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::channels::{self, ChannelScorer};

/// What a unit's channels put into the stream: Σ over its channels c of ‖x_c‖ · Σ over the rows r
/// of the projection that reads them of |W_rc|, ‖x_c‖ the L2 norm over all calibration tokens.
/// Neurons and heads only.
///
/// Wanda (arXiv 2306.11695) scores single weights by |W_rc| · ‖x_c‖; its structured form, as FLAP
/// compares with it, adds them up per unit. Here the norm is over all tokens where the original
/// divides by their number, which moves no ranking.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Wanda {}

minitron_core::plugin! {
    Importance for Wanda {
        tag: "wanda",
        summary: "|weight| x activation norm of neurons and heads",
        source: "arXiv 2306.11695; its structured form, arXiv 2312.11983",
    }
}

#[typetag::serde(name = "wanda")]
impl Importance for Wanda {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        channels::need(group)
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(ChannelScorer::boxed(
            group,
            |weight| Ok(weight.f_abs()?),
            |seen| seen.sum_squares.sqrt() * seen.weight,
        ))
    }
}
