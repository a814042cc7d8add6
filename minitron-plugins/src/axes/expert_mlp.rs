use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{EXPERT_MLP, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Neurons inside each expert, equally many in all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertMlp {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for ExpertMlp {
        tag: "expert_mlp",
        summary: "neurons inside each expert",
        source: "arXiv 2407.14679, section 2.1, for each expert",
    }
}

#[typetag::serde(name = "expert_mlp")]
impl Axis for ExpertMlp {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, EXPERT_MLP))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
