use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::mixers::MAMBA_HEAD_DIM;
use minitron_core::spec::{ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Channels of a Mamba head: the same ones in all heads of a layer, others in other layers, since
/// nothing but their number is stated. Only on request: no budget takes a channel unless the axis
/// is held or freed by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MambaHeadDim {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for MambaHeadDim {
        tag: "mamba_head_dim",
        summary: "channels of a Mamba head, the same in all heads of a layer, on request",
        source: "arXiv 2504.11409",
    }
}

#[typetag::serde(name = "mamba_head_dim")]
impl Axis for MambaHeadDim {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, MAMBA_HEAD_DIM))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
