use minitron_core::blueprint::{Blueprint, DEPTH, PruneGroup};
use minitron_core::contract::Axis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whole layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Depth {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for Depth {
        tag: "depth",
        summary: "whole layers",
        source: "arXiv 2407.14679, section 2.1",
    }
}

#[typetag::serde(name = "depth")]
impl Axis for Depth {
    fn groups(&self, blueprint: &Blueprint) -> Vec<PruneGroup> {
        PruneGroup::of_kind(blueprint, DEPTH)
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
