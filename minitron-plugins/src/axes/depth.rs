use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{DEPTH, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whole layers: those with the lowest scores, or the one contiguous block with the lowest sum.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Depth {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
    /// Drop one block of neighbours, the one with the lowest sum of scores, rather than layer by
    /// layer.
    pub contiguous: bool,
}

minitron_core::plugin! {
    Axis for Depth {
        tag: "depth",
        summary: "whole layers",
        source: "arXiv 2407.14679, section 2.1; arXiv 2408.11796 (a contiguous block)",
    }
}

#[typetag::serde(name = "depth")]
impl Axis for Depth {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        let groups = PruneGroup::of_kind(spec, DEPTH).into_iter();
        Ok(groups
            .map(|group| PruneGroup {
                contiguous: self.contiguous,
                ..group
            })
            .collect())
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
