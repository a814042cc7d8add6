use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{KV_HEADS, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key/value heads of each layer, each with all its query heads. Only where queries share keys and
/// values, and only on request: no budget takes one unless the axis is held or freed by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KvHeads {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for KvHeads {
        tag: "kv_heads",
        summary: "whole key/value heads with their query heads, on request",
        source: "arXiv 2305.13245 (the groups); a group is scored as arXiv 2407.14679, section \
                 2.2, scores a head",
    }
}

#[typetag::serde(name = "kv_heads")]
impl Axis for KvHeads {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, KV_HEADS))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
