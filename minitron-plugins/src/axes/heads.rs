use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{HEADS, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Query heads of each layer; equally many stay for every key/value head, which all stay. Where
/// each query head has keys and values of its own, the whole head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Heads {
    /// Student sizes are multiples of this; the family's rule where not given.
    pub multiple_of: Option<usize>,
}

minitron_core::plugin! {
    Axis for Heads {
        tag: "heads",
        summary: "query heads of each layer, equally many per key/value head",
        source: "arXiv 2407.14679, section 2.1",
    }
}

#[typetag::serde(name = "heads")]
impl Axis for Heads {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, HEADS))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.multiple_of
    }
}
