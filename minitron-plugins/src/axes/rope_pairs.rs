use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{ModelSpec, PruneGroup, ROPE_PAIRS};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pairs of channels that the rotary embedding turns together, the same ones in every head of every
/// layer: `head_dim` is two for each pair. Values lose the channels at the same places. The config
/// lists the frequencies that stay. Only where it states `head_dim`, and only on request: no budget
/// takes a pair unless the axis is held or freed by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RopePairs {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for RopePairs {
        tag: "rope_pairs",
        summary: "head_dim in rope pairs, the same in every head, on request",
        source: "arXiv 2104.09864 (the pairs); arXiv 2402.13753 (a config with a frequency for \
                 each)",
    }
}

#[typetag::serde(name = "rope_pairs")]
impl Axis for RopePairs {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, ROPE_PAIRS))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
