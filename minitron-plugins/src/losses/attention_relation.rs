use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::{Error, Result};
use minitron_core::spec::{HEADS, KV_HEADS, ModelSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::mismatch;
use super::divergences::{kl, widened};
use super::layer_map::Layers;
use super::relations::{Relation, Relations};

const TAG: &str = "attention_relation";

/// Mean over samples, relation heads and query positions of KL(teacher ‖ student) between
/// relations: the heads of queries (keys, values) side by side are split anew into R relation heads
/// x [T, d], whose relation is A = softmax(x·xᵀ / √d) over positions [T, T], earlier ones alone in
/// a causal student. In nats. R divides both models' widths, so nothing is lifted.
///
/// A pair of layers takes B·R·T² numbers for each model. The paper found no gain in it (section 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionRelation {
    /// `last` (as MiniLM has it), `last_but_two`, `uniform`, or pairs teacher:student counted from
    /// 0 such as `29:13 31:15`, between spaces or +.
    #[schemars(with = "String")]
    pub layers: Layers,
    /// Relation heads R; 0 takes the student's heads where they divide the teacher's width, or else
    /// the greatest common divisor of both numbers of heads (key/value heads for keys and values).
    pub relation_heads: u32,
    /// Which of `query key value`, between spaces or +.
    #[schemars(with = "String")]
    pub relations: Relations,
}

impl Default for AttentionRelation {
    fn default() -> Self {
        AttentionRelation {
            layers: Layers::Last,
            relation_heads: 0,
            relations: Relations::default(),
        }
    }
}

minitron_core::plugin! {
    StateLoss for AttentionRelation {
        tag: "attention_relation",
        summary: "KL divergence between how queries, keys and values of a layer relate to each \
                  other",
        source: "arXiv 2012.15828 (MiniLMv2), section 3; arXiv 2407.14679, section 3",
    }
}

/// How wide a site is, and one head of it.
#[derive(Clone, Copy)]
struct Width {
    width: i64,
    head_dim: i64,
}

impl Width {
    fn of_states(states: &States) -> Result<Self> {
        Ok(Width {
            width: states.x_btc.size3()?.2,
            head_dim: states.head_dim as i64,
        })
    }

    fn of_model(relation: Relation, spec: &ModelSpec) -> Self {
        let n_kv_heads = spec.size(KV_HEADS);
        let is_grouped = relation != Relation::Query && n_kv_heads > 0;
        let n_heads = if is_grouped {
            n_kv_heads
        } else {
            spec.size(HEADS)
        };
        let head_dim = spec.head_dim() as i64;
        Width {
            width: n_heads as i64 * head_dim,
            head_dim,
        }
    }

    /// Of whole heads; what is not made of any has none.
    fn n_heads(&self) -> i64 {
        if self.head_dim > 0 && self.width % self.head_dim == 0 {
            self.width / self.head_dim
        } else {
            0
        }
    }

    fn is_multiple_of(&self, n: i64) -> bool {
        n > 0 && self.width > 0 && self.width % n == 0
    }
}

impl AttentionRelation {
    /// R for states of these widths.
    fn n_relation_heads(&self, student: Width, teacher: Width) -> Result<i64> {
        let (n_student, n_teacher) = (student.n_heads(), teacher.n_heads());
        let chosen = match i64::from(self.relation_heads) {
            0 if student.is_multiple_of(n_student) && teacher.is_multiple_of(n_student) => {
                n_student
            }
            0 => greatest_common_divisor(n_student, n_teacher),
            given => given,
        };
        if student.is_multiple_of(chosen) && teacher.is_multiple_of(chosen) {
            return Ok(chosen);
        }
        let (of_student, of_teacher) = (student.width, teacher.width);
        Err(Error::Recipe(format!(
            "{TAG}: relation_heads: expected a divisor of the student's width {of_student} and the \
             teacher's {of_teacher}, got {chosen}; 0 takes one that fits, `relations=query` leaves \
             narrower keys and values out"
        )))
    }
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[typetag::serde(name = "attention_relation")]
impl StateLoss for AttentionRelation {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        let mut pairs = Vec::new();
        for &relation in &self.relations.0 {
            self.n_relation_heads(
                Width::of_model(relation, models.student),
                Width::of_model(relation, models.teacher),
            )?;
            pairs.extend(
                self.layers
                    .pairs(TAG, models, |model, layer| relation.site(model, layer))?,
            );
        }
        Ok(pairs)
    }

    fn projects(&self) -> bool {
        false
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        let (n_batch, n_tokens, _) = student.x_btc.size3()?;
        let (n_batch_of_teacher, n_tokens_of_teacher, _) = teacher.x_btc.size3()?;
        if (n_batch, n_tokens) != (n_batch_of_teacher, n_tokens_of_teacher) {
            let expected = format!("[{n_batch_of_teacher}, {n_tokens_of_teacher}]");
            return Err(mismatch(
                TAG,
                format!(
                    "expected states of the teacher's tokens {expected}, got [{n_batch}, \
                     {n_tokens}]"
                ),
            ));
        }
        let n_heads =
            self.n_relation_heads(Width::of_states(student)?, Width::of_states(teacher)?)?;
        let hidden = hidden_keys(student, n_tokens)?;
        let (mask_bt, hidden) = (student.attention_mask_bt, hidden.as_ref());
        let log_q_brtt = log_relations(student.x_btc, mask_bt, hidden, n_heads)?;
        let log_p_brtt = log_relations(&teacher.x_btc.f_detach()?, mask_bt, hidden, n_heads)?;
        // Padding is zero in both models: as a query it relates alike, and adds nothing.
        let loss_brt = kl(&log_p_brtt, &log_q_brtt)?;
        let n_seen = match student.attention_mask_bt {
            Some(attention_mask_bt) => attention_mask_bt
                .f_sum(tch::Kind::Int64)?
                .f_int64_value(&[])?,
            None => n_batch * n_tokens,
        };
        Ok(loss_brt
            .f_sum(loss_brt.f_kind()?)?
            .f_div_scalar((n_seen * n_heads).max(1))?)
    }
}

/// Which positions a query [.., T] does not relate to [.., T]: padding, and later ones in a causal
/// model.
fn hidden_keys(states: &States, n_tokens: i64) -> Result<Option<Tensor>> {
    let padding = states
        .attention_mask_bt
        .map(|attention_mask_bt| {
            attention_mask_bt
                .f_logical_not()?
                .f_reshape([-1, 1, 1, n_tokens])
        })
        .transpose()?;
    if !states.causal {
        return Ok(padding);
    }
    let later_tt = Tensor::f_ones(
        [n_tokens, n_tokens],
        (tch::Kind::Bool, states.x_btc.device()),
    )?
    .f_triu(1)?;
    match padding {
        Some(padding) => Ok(Some(padding.f_logical_or(&later_tt)?)),
        None => Ok(Some(later_tt)),
    }
}

/// log A [B, R, T, T] of states [B, T, C].
fn log_relations(
    x_btc: &Tensor,
    attention_mask_bt: Option<&Tensor>,
    hidden: Option<&Tensor>,
    n_heads: i64,
) -> Result<Tensor> {
    let (n_batch, n_tokens, width) = x_btc.size3()?;
    let mut x_btc = widened(x_btc)?;
    if let Some(attention_mask_bt) = attention_mask_bt {
        x_btc = x_btc.f_masked_fill(&attention_mask_bt.f_logical_not()?.f_unsqueeze(-1)?, 0.0)?;
    }
    let x_brtd = x_btc
        .f_reshape([n_batch, n_tokens, n_heads, width / n_heads])?
        .f_transpose(1, 2)?;
    let scale = ((width / n_heads) as f64).sqrt();
    let mut score_brtt = x_brtd
        .f_matmul(&x_brtd.f_transpose(-2, -1)?)?
        .f_div_scalar(scale)?;
    if let Some(hidden) = hidden {
        // Finite, so that what is hidden adds 0·(difference) rather than 0·∞ to a divergence.
        score_brtt = score_brtt.f_masked_fill(hidden, -1e30)?;
    }
    Ok(score_brtt.f_log_softmax(-1, score_brtt.f_kind()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::numbers::uniform;
    use crate::losses::tests::assert_state_gradient;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let (student, teacher) = (
            uniform(&[2, 4, 8], 2.0, 3).unwrap(),
            uniform(&[2, 4, 8], 2.0, 4).unwrap(),
        );
        for causal in [true, false] {
            let states = |x_btc| States {
                x_btc,
                attention_mask_bt: None,
                causal,
                head_dim: 4,
            };
            // Of two heads of four channels: in S = X·Xᵀ/√d it is (q − p)/(B·T·R), in X the sum of
            // that and its transpose, times X/√d.
            let heads = |x: &Tensor| x.view([2, 4, 2, 4]).transpose(1, 2);
            let relation = |x: &Tensor| {
                let score_brtt = heads(x).matmul(&heads(x).transpose(-2, -1)) / 2.0;
                let later_tt = Tensor::ones([4, 4], (tch::Kind::Bool, tch::Device::Cpu)).triu(1);
                let score_brtt = match causal {
                    true => score_brtt.masked_fill(&later_tt, f64::NEG_INFINITY),
                    false => score_brtt,
                };
                score_brtt.softmax(-1, tch::Kind::Double)
            };
            let in_score = (relation(&student) - relation(&teacher)) / (2.0 * 4.0 * 2.0);
            let in_heads = (&in_score + in_score.transpose(-2, -1)).matmul(&heads(&student)) / 2.0;
            let expected = in_heads.transpose(1, 2).reshape([2, 4, 8]);
            let loss = AttentionRelation::default();
            assert_state_gradient(&loss, &states(&student), &states(&teacher), &expected);
        }
    }
}
