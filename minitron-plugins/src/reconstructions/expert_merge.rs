use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::mixers::{CORRECTION, EXPERT_ROUTED_SUMS, EXPERT_SUMS, ROUTER};
use minitron_core::reconstruct::{StudentEditor, UnitOutputs};
use minitron_core::spec::{EXPERTS, ParamKind, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod assignment;
mod merging;

use merging::Merging;

/// Averages dropped experts into the kept ones whose outputs are most alike, layer by layer, on the
/// teacher's own stream:
///
/// ```text
/// o_j  = mean of E_j(x) over tokens x              what expert j gives by itself
/// k(d) = argmax over kept k of cos(o_d, o_k)       where a dropped expert d goes
/// P_d  = argmax over permutations P of ⟨W_k, P·W_d⟩
/// W_k := Σ n_j · P_j·W_j / Σ n_j                   over k, whose P is 1, and all d that go there
/// ```
/// with a row of W for each neuron (gate, up, down, biases), and n_j the tokens that the teacher's
/// router sends to expert j. An expert without any has no weight. P is exact, by linear assignment.
/// Of k, the neurons stay that the plan keeps. It goes before `least_squares`, which then refits
/// what is left.
///
/// HC-SMoE (arXiv 2410.08589) groups experts by mean outputs over all tokens; M-SMoE (arXiv
/// 2310.01334) groups them by logits of the router, aligns neurons by weights and averages by
/// tokens. Both choose groups, keep all rows of the router and send a group's tokens to its one
/// expert. Here the plan says who stays, and a router has as many rows as experts: their mean is
/// what is nearest to that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertMerge {
    /// Tokens that outputs are averaged over: `all`, or those `routed` to the expert.
    pub of: Tokens,
    /// The router's row of a kept expert: the `mean` of its own and those of experts merged into
    /// it, by the same weights, or as it was (`kept`).
    pub router: RouterRow,
}

/// Tokens that outputs are averaged over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// All of them.
    All,
    /// Those that go through the expert.
    #[default]
    Routed,
}

/// What becomes of a kept expert's row of the router.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouterRow {
    /// The mean of rows.
    #[default]
    Mean,
    /// What it was.
    Kept,
}

minitron_core::plugin! {
    Reconstruction for ExpertMerge {
        tag: "expert_merge",
        summary: "dropped experts averaged into those that give most alike",
        source: "in the manner of arXiv 2410.08589 (HC-SMoE) and 2310.01334 (M-SMoE)",
    }
}

const ROUTER_ROLES: [(Role, ParamKind); 3] = [
    (ROUTER, ParamKind::Weight),
    (ROUTER, ParamKind::Bias),
    (CORRECTION, ParamKind::Bias),
];

#[typetag::serde(name = "expert_merge")]
impl Reconstruction for ExpertMerge {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if editor.teacher_spec().size(EXPERTS) == 0 {
            return Err(Error::Recipe(format!(
                "expert_merge: this `{}` model has no experts; leave expert_merge out",
                editor.spec().architecture
            )));
        }
        let sums = match self.of {
            Tokens::All => EXPERT_SUMS,
            Tokens::Routed => EXPERT_ROUTED_SUMS,
        };
        editor
            .for_each_part_that_lost_units(sums, &mut |editor, outputs| self.merge(editor, outputs))
    }
}

impl ExpertMerge {
    /// The experts of one layer.
    fn merge(&self, editor: &mut StudentEditor, outputs: &UnitOutputs) -> Result<()> {
        let at = outputs.at;
        let roles = editor.unit_roles(at);
        if editor.is_replaced(at, &[&roles[..], &ROUTER_ROLES].concat()) {
            return Err(Error::Recipe(
                "expert_merge: an earlier reconstruction replaced weights of experts, which would \
                 be lost; name expert_merge before it"
                    .into(),
            ));
        }
        let merging = Merging::new(editor, outputs)?;
        if merging.is_empty() {
            return Ok(());
        }
        for role in roles {
            editor.replace_units((at, merging.n_kept()), role, &|editor, place| {
                merging.merged(editor, place, role)
            })?;
        }
        let has_router = ROUTER_ROLES
            .iter()
            .filter(|_| self.router == RouterRow::Mean);
        for &(role, kind) in has_router {
            if editor.spec().find(at, role, kind).is_some() {
                let mean = merging.router(editor, (role, kind))?;
                editor.replace(at, role, kind, &mean)?;
            }
        }
        Ok(())
    }
}
