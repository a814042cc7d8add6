use std::num::NonZeroU32;

use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::divergences::{forward, rescaled, teacher, temperature};

/// KL(teacher ‖ student) over the `k` tokens that the teacher finds likeliest, both distributions
/// renormalised over these: Σᵥ p·(log p − log q) with p and q the softmax of their `k` logits /
/// `temperature`, times `temperature`². In nats.
///
/// The paper found k up to 100 worse than the whole vocabulary and larger k no better (section 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopKKl {
    /// Number of tokens; the whole vocabulary where it is smaller.
    pub k: NonZeroU32,
    /// Divides both logits.
    #[serde(deserialize_with = "temperature")]
    pub temperature: f64,
    /// The factor `temperature`², by which gradients keep their size.
    pub scale_by_t2: bool,
}

impl Default for TopKKl {
    fn default() -> Self {
        TopKKl {
            k: NonZeroU32::MIN.saturating_add(99),
            temperature: 1.0,
            scale_by_t2: true,
        }
    }
}

minitron_core::plugin! {
    LogitLoss for TopKKl {
        tag: "top_k_kl",
        summary: "KL divergence over the teacher's likeliest tokens alone",
        source: "arXiv 2407.14679, section 3 (top-k logits)",
    }
}

#[typetag::serde(name = "top_k_kl")]
impl LogitLoss for TopKKl {
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Distribution {
            n_tokens: self.k.get() as usize,
        }
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        let teacher_nv = teacher("top_k_kl", teacher_nv)?.f_detach()?;
        let (_, vocab) = teacher_nv.size2()?;
        let (teacher_nk, tokens_nk) =
            teacher_nv.f_topk(i64::from(self.k.get()).min(vocab), -1, true, true)?;
        let student_nk = student_nv.f_gather(-1, &tokens_nk, false)?;
        rescaled(
            forward(&student_nk, &teacher_nk, self.temperature)?,
            self.temperature,
            self.scale_by_t2,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::Logits;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        for k in [1u32, 3, 7] {
            let (_, tokens_nk) = logits.teacher_nv.topk(i64::from(k), -1, true, true);
            // q − p of the distributions over these tokens alone; nothing at the others.
            let softmax_of = |logits_nv: &Tensor| {
                logits_nv
                    .gather(-1, &tokens_nk, false)
                    .softmax(-1, tch::Kind::Double)
            };
            let difference_nk = softmax_of(&logits.student_nv) - softmax_of(&logits.teacher_nv);
            let expected_nv =
                logits
                    .student_nv
                    .zeros_like()
                    .scatter(-1, &tokens_nk, &difference_nk);
            let loss = TopKKl {
                k: NonZeroU32::new(k).unwrap(),
                ..TopKKl::default()
            };
            logits.assert_gradient(&loss, &expected_nv);
        }
    }
}
