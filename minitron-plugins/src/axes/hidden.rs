use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{HIDDEN, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Channels of the residual stream, the same in every layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hidden {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for Hidden {
        tag: "hidden",
        summary: "channels of the residual stream, the same in every layer",
        source: "arXiv 2407.14679, section 2.1",
    }
}

#[typetag::serde(name = "hidden")]
impl Axis for Hidden {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, HIDDEN))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
