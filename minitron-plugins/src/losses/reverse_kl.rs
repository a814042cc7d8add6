use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::divergences::{
    kl, log_softmax, need, rescaled, reverse_and_gradient, t2, teacher, temperature,
};

/// KL(student ‖ teacher) = Σᵥ q·(log q − log p) over the vocabulary, p and q the softmax of the
/// teacher's and the student's logits / `temperature`, times `temperature`². In nats.
///
/// What the student holds likely and the teacher does not costs most, where the forward divergence
/// minds the opposite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReverseKl {
    /// Divides both logits.
    #[serde(deserialize_with = "temperature")]
    pub temperature: f64,
    /// The factor `temperature`², by which gradients keep their size.
    pub scale_by_t2: bool,
}

impl Default for ReverseKl {
    fn default() -> Self {
        ReverseKl {
            temperature: 1.0,
            scale_by_t2: true,
        }
    }
}

minitron_core::plugin! {
    LogitLoss for ReverseKl {
        tag: "reverse_kl",
        summary: "KL divergence from the student's distribution to the teacher's",
        source: "arXiv 2407.14679, section 3 (reverse KLD); arXiv 2306.08543 (MiniLLM)",
    }
}

#[typetag::serde(name = "reverse_kl")]
impl LogitLoss for ReverseKl {
    fn teacher(&self) -> TeacherNeed {
        need(self.temperature)
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        let log_p_nv = log_softmax(
            &teacher("reverse_kl", teacher_nv)?.f_detach()?,
            self.temperature,
        )?;
        let loss_n = kl(&log_softmax(student_nv, self.temperature)?, &log_p_nv)?;
        rescaled(loss_n, self.temperature, self.scale_by_t2)
    }

    fn rows_and_gradient(
        &self,
        student_nv: &mut Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
        factor: f64,
    ) -> Result<Option<Tensor>> {
        let teacher_nv = teacher("reverse_kl", teacher_nv)?;
        let factor = factor * t2(self.temperature, self.scale_by_t2);
        let loss_n = reverse_and_gradient(student_nv, teacher_nv, self.temperature, factor)?;
        rescaled(loss_n, self.temperature, self.scale_by_t2).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::{Logits, through_softmax};

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        for temperature in [1.0, 2.5] {
            let (q_nv, p_nv) = logits.softmaxes(temperature);
            // Through the softmax of s/T: the gradient in q is log(q/p) + 1.
            let in_q_nv = q_nv.log() - p_nv.log() + 1.0;
            let plain_nv = through_softmax(&q_nv, &in_q_nv) / temperature;
            let loss = ReverseKl {
                temperature,
                scale_by_t2: false,
            };
            logits.assert_gradient(&loss, &plain_nv);
            let loss = ReverseKl {
                temperature,
                scale_by_t2: true,
            };
            logits.assert_gradient(&loss, &(plain_nv * temperature * temperature));
        }
    }
}
