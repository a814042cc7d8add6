use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{ModelSpec, PruneGroup, SHARED_MLP};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Neurons of the expert that all tokens go through.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SharedMlp {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for SharedMlp {
        tag: "shared_mlp",
        summary: "neurons of the expert that all tokens go through",
        source: "arXiv 2407.14679, section 2.1",
    }
}

#[typetag::serde(name = "shared_mlp")]
impl Axis for SharedMlp {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, SHARED_MLP))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
