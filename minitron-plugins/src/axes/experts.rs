use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{EXPERTS, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whole experts of each layer: a row of the router and all their tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Experts {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for Experts {
        tag: "experts",
        summary: "whole experts of each layer",
        source: "arXiv 2510.13999",
    }
}

#[typetag::serde(name = "experts")]
impl Axis for Experts {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, EXPERTS))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
