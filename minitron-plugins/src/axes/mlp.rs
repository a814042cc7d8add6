use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{MLP, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Neurons of each layer's MLP: a row of every input projection, a column of the output projection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mlp {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for Mlp {
        tag: "mlp",
        summary: "neurons of each layer's MLP",
        source: "arXiv 2407.14679, section 2.1",
    }
}

#[typetag::serde(name = "mlp")]
impl Axis for Mlp {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, MLP))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
