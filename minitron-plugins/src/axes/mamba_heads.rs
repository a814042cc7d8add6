use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::mixers::MAMBA_HEADS;
use minitron_core::spec::{ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Heads of each Mamba layer with their states; equally many stay of each group, whose heads share
/// what they write to their states, what they read from them, and a norm. They are ranked inside
/// their group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MambaHeads {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for MambaHeads {
        tag: "mamba_heads",
        summary: "heads of each Mamba layer, equally many per group",
        source: "arXiv 2504.11409 (group-aware pruning)",
    }
}

#[typetag::serde(name = "mamba_heads")]
impl Axis for MambaHeads {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, MAMBA_HEADS))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
