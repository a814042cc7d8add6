use minitron_core::contract::Allocator;
use minitron_core::error::{Error, Result};
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::spec::{ModelSpec, SizeMap, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layers::LayersByDepth;
use super::shapes::{Goal, plans};

/// A share of the parameters to keep: the budget of that many, chosen likewise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ratio {
    /// Share kept, above 0, at most 1.
    pub ratio: f64,
    /// Whether embeddings and output head are left out on both sides: on small models they are most
    /// of the parameters.
    pub non_embedding: bool,
    /// Largest relative deviation.
    pub tolerance: f64,
    /// Sizes held, by kind.
    pub hold: Sizes,
    /// Axes that may shrink; all that were scored but depth, kv_heads, rope_pairs and
    /// mamba_head_dim where empty.
    pub free: Vec<String>,
}

impl Default for Ratio {
    fn default() -> Self {
        Ratio {
            ratio: 0.5,
            non_embedding: false,
            tolerance: 0.05,
            hold: Sizes::new(),
            free: Vec::new(),
        }
    }
}

minitron_core::plugin! {
    Allocator for Ratio {
        tag: "ratio",
        summary: "the most balanced shape with a share of the parameters",
        source: "arXiv 2407.14679, section 4",
    }
}

#[typetag::serde(name = "ratio")]
impl Allocator for Ratio {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        if !(self.ratio > 0.0 && self.ratio <= 1.0) {
            return Err(Error::Recipe(format!(
                "ratio: expected a share above 0, at most 1, got {}",
                self.ratio
            )));
        }
        let full = self.n_params(spec, &SizeMap::default());
        let layers = LayersByDepth::new(space, rankings, spec);
        let goal = Goal {
            cost: &|sizes| self.n_params(spec, &layers.with(sizes)),
            unit: "parameters",
            target: (full as f64 * self.ratio).round() as u64,
            tolerance: self.tolerance,
            is_ceiling: false,
            hold: &self.hold,
            free: &self.free,
        };
        plans(&goal, space, rankings, spec, 1)
    }
}

impl Ratio {
    fn n_params(&self, spec: &ModelSpec, sizes: &SizeMap) -> u64 {
        match self.non_embedding {
            true => spec.n_non_embedding_of(sizes),
            false => spec.n_params_of(sizes),
        }
    }
}
