//! Which experts a token goes through, and with what weights.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::{Linear, PartWeights};
use crate::parts::{ParamKind, Role};

/// Router, [X | E].
pub const ROUTER: Role = Role("router");
/// What is added to scores where experts are chosen, \[X\] (DeepSeek's `e_score_correction_bias`).
pub const CORRECTION: Role = Role("score correction");

/// How many experts a token goes through, and how they are chosen and weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// Experts of a token.
    pub top_k: usize,
    /// From logits to the chosen ones and their weights.
    pub selection: Selection,
    /// Whether weights are divided by their sum over the chosen ones.
    pub renormalise: bool,
    /// Factor of the weights.
    pub scale: f64,
    /// Where experts are chosen inside the best groups of them.
    pub groups: Option<Groups>,
}

/// From logits to the chosen experts and their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The largest of a softmax over all experts, in f32; their shares are the weights.
    Softmax,
    /// The largest of sigmoids plus a correction, in f32; the sigmoids are the weights
    /// (arXiv 2412.19437, section 2.1.2).
    Sigmoid,
    /// The largest logits; a softmax over them alone gives the weights (gpt-oss).
    TopFirst,
}

/// Experts fall into groups of equally many; those of a token come out of the best ones, by the sum
/// of their two best scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Groups.
    pub n: usize,
    /// Groups that a token's experts come from.
    pub top_k: usize,
}

/// What keeps a sum of sigmoids away from 0.
const LEAST_SUM: f64 = 1e-20;

#[derive(Debug)]
pub(super) struct RunRouter {
    of: Router,
    project: Linear,
    correction_x: Option<Tensor>,
}

/// The experts of every token.
pub(super) struct Routed {
    /// Weights [N, R].
    pub weight_nr: Tensor,
    /// Which [N, R].
    pub expert_nr: Tensor,
}

impl Router {
    /// Plain softmax routing, weights as they come.
    pub fn new(top_k: usize) -> Self {
        Router {
            top_k,
            selection: Selection::Softmax,
            renormalise: false,
            scale: 1.0,
            groups: None,
        }
    }

    pub(super) fn load(&self, weights: &mut PartWeights) -> Result<RunRouter> {
        Ok(RunRouter {
            of: self.clone(),
            project: weights.linear(ROUTER)?,
            correction_x: weights.tensor_opt(CORRECTION, ParamKind::Bias)?,
        })
    }
}

impl RunRouter {
    /// The experts of tokens x [N, E].
    pub fn route(&self, x_ne: &Tensor) -> Result<Routed> {
        let logits_nx = match self.of.selection {
            // DeepSeek's routers multiply in f32.
            Selection::Sigmoid => self.project.widened(x_ne)?,
            _ => self.project.forward(x_ne)?,
        };
        let (kind, k) = (x_ne.f_kind()?, self.of.top_k as i64);
        let (weight_nr, expert_nr) = match self.of.selection {
            Selection::Softmax => wide(&logits_nx)?
                .f_softmax(-1, None)?
                .f_topk(k, -1, true, true)?,
            Selection::Sigmoid => {
                let score_nx = wide(&logits_nx)?.f_sigmoid()?;
                let expert_nr = self.chosen(&score_nx)?;
                (score_nx.f_gather(1, &expert_nr, false)?, expert_nr)
            }
            Selection::TopFirst => {
                let (top_nr, expert_nr) = logits_nx.f_topk(k, -1, true, true)?;
                (top_nr.f_softmax(-1, None)?, expert_nr)
            }
        };
        let weight_nr = match self.of.renormalise {
            true => {
                let sum = weight_nr.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
                let sum = match self.of.selection {
                    Selection::Sigmoid => sum.f_add_scalar(LEAST_SUM)?,
                    _ => sum,
                };
                weight_nr.f_div(&sum)?
            }
            false => weight_nr,
        };
        let weight_nr = match self.of.scale == 1.0 {
            true => weight_nr,
            false => weight_nr.f_mul_scalar(self.of.scale)?,
        };
        Ok(Routed {
            weight_nr: weight_nr.f_to_kind(kind)?,
            expert_nr,
        })
    }

    /// The best by score and correction, inside the best groups.
    fn chosen(&self, score_nx: &Tensor) -> Result<Tensor> {
        let score_nx = score_nx.f_detach()?;
        let mut choice_nx = match &self.correction_x {
            Some(correction_x) => score_nx.f_add(&wide(correction_x)?.f_detach()?)?,
            None => score_nx,
        };
        if let Some(groups) = self.of.groups.filter(|groups| groups.n > 1) {
            let (n_tokens, n_experts) = choice_nx.size2()?;
            let n_groups = groups.n as i64;
            let by_group = choice_nx.f_view([n_tokens, n_groups, -1])?;
            let two = 2.min(n_experts / n_groups);
            let (best, _) = by_group.f_topk(two, -1, true, false)?;
            let of_group = best.f_sum_dim_intlist([-1i64].as_slice(), false, None)?;
            let (_, kept) = of_group.f_topk(groups.top_k as i64, -1, true, false)?;
            let goes = of_group
                .f_ones_like()?
                .f_scatter_value(1, &kept, 0.0)?
                .f_to_kind(Kind::Bool)?
                .f_unsqueeze(-1)?
                .f_expand_as(&by_group)?
                .f_reshape([n_tokens, n_experts])?;
            choice_nx = choice_nx.f_masked_fill(&goes, f64::NEG_INFINITY)?;
        }
        Ok(choice_nx.f_topk(self.of.top_k as i64, -1, true, true)?.1)
    }
}

/// At least f32.
fn wide(x: &Tensor) -> Result<Tensor> {
    let kind = x.f_kind()?;
    Ok(match kind.elt_size_in_bytes() < 4 {
        true => x.f_to_kind(Kind::Float)?,
        false => x.shallow_clone(),
    })
}
