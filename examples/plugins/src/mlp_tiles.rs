use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::spec::{MLP, ModelSpec, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// MLP neurons of every layer, in numbers that fill tiles of a matrix unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MlpTiles {
    /// Neurons in a tile.
    pub tile: usize,
}

impl Default for MlpTiles {
    fn default() -> Self {
        MlpTiles { tile: 16 }
    }
}

minitron_core::plugin! {
    Axis for MlpTiles {
        tag: "mlp_tiles",
        summary: "MLP neurons in whole tiles",
        source: "an example",
    }
}

#[typetag::serde(name = "mlp_tiles")]
impl Axis for MlpTiles {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        Ok(PruneGroup::of_kind(spec, MLP))
    }

    fn multiple_of(&self) -> Option<usize> {
        Some(self.tile.max(1))
    }
}
