use minitron_core::contract::Allocator;
use minitron_core::error::Result;
use minitron_core::plan::{Plan, Rankings, Space, Target, parse_budget};
use minitron_core::spec::{ModelSpec, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layers::LayersByDepth;
use super::shapes::{Goal, plans};

/// A number of parameters: of all legal shapes within the tolerance, the one whose axes shrink most
/// evenly.
///
/// Depth and key/value heads stay unless they are held at another size or named in `free`: at one
/// size, width pruning keeps more quality (arXiv 2407.14679, best practice 4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// For example `4B+-5%`.
    pub params: String,
    /// Whether those count that one token goes through, not all experts.
    pub active: bool,
    /// Sizes held, by kind.
    pub hold: Sizes,
    /// Axes that may shrink; all that were scored but depth, kv_heads, rope_pairs and
    /// mamba_head_dim where empty.
    pub free: Vec<String>,
    /// Plans given, best first.
    pub n_plans: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            params: "4B+-5%".into(),
            active: false,
            hold: Sizes::new(),
            free: Vec::new(),
            n_plans: 1,
        }
    }
}

minitron_core::plugin! {
    Allocator for Budget {
        tag: "budget",
        summary: "the most balanced shape within a number of parameters",
        source: "arXiv 2407.14679, section 4 (candidates within 5 % of a budget)",
    }
}

#[typetag::serde(name = "budget")]
impl Allocator for Budget {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        let Target {
            n_params,
            tolerance,
        } = parse_budget(&self.params)?;
        let layers = LayersByDepth::new(space, rankings, spec);
        let goal = Goal {
            cost: &|sizes| match self.active {
                true => spec.n_active_of(&layers.with(sizes)),
                false => spec.n_params_of(&layers.with(sizes)),
            },
            unit: match self.active {
                true => "parameters of one token",
                false => "parameters",
            },
            target: n_params,
            tolerance,
            is_ceiling: false,
            hold: &self.hold,
            free: &self.free,
        };
        plans(&goal, space, rankings, spec, self.n_plans)
    }
}
