use minitron_core::contract::Allocator;
use minitron_core::error::Result;
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::spec::{ModelSpec, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The sizes given; axes left out stay whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fixed {
    /// Size by kind: hidden, mlp, heads, kv_heads, depth.
    pub sizes: Sizes,
}

minitron_core::plugin! {
    Allocator for Fixed {
        tag: "fixed",
        summary: "the sizes given",
        source: "arXiv 2407.14679, section 2",
    }
}

#[typetag::serde(name = "fixed")]
impl Allocator for Fixed {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        Ok(vec![space.plan(&self.sizes, rankings, spec)?])
    }
}
