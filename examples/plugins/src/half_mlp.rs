use minitron_core::contract::Allocator;
use minitron_core::error::Result;
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::spec::{MLP, ModelSpec, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Halves the MLPs, to the next legal size.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HalfMlp {}

minitron_core::plugin! {
    Allocator for HalfMlp {
        tag: "half_mlp",
        summary: "half of the MLP neurons",
        source: "an example",
    }
}

#[typetag::serde(name = "half_mlp")]
impl Allocator for HalfMlp {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        let axis = space.axis(MLP)?;
        let half = (axis.full / 2).div_ceil(axis.step) * axis.step;
        // Legality and the best units of that size are the core's part.
        Ok(vec![space.plan(
            &Sizes::from([(MLP.to_owned(), half)]),
            rankings,
            spec,
        )?])
    }
}
