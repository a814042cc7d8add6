use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::divergences::{forward, forward_and_gradient, need, rescaled, t2, teacher, temperature};

/// KL(teacher ‖ student) = Σᵥ p·(log p − log q) over the vocabulary, p and q the softmax of the
/// teacher's and the student's logits / `temperature`, times `temperature`². In nats.
///
/// The paper found temperature 1 best and this loss alone better than a sum with others (section
/// 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardKl {
    /// Divides both logits.
    #[serde(deserialize_with = "temperature")]
    pub temperature: f64,
    /// The factor `temperature`², by which gradients keep their size.
    pub scale_by_t2: bool,
}

impl Default for ForwardKl {
    fn default() -> Self {
        ForwardKl {
            temperature: 1.0,
            scale_by_t2: true,
        }
    }
}

minitron_core::plugin! {
    LogitLoss for ForwardKl {
        tag: "forward_kl",
        summary: "KL divergence from the teacher's distribution to the student's",
        source: "arXiv 2407.14679, section 3 (L_logits)",
    }
}

#[typetag::serde(name = "forward_kl")]
impl LogitLoss for ForwardKl {
    fn teacher(&self) -> TeacherNeed {
        need(self.temperature)
    }

    /// A teacher's softened distribution is none of its own draws.
    fn is_linear_in_teacher(&self) -> bool {
        self.temperature == 1.0
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        let teacher_nv = teacher("forward_kl", teacher_nv)?;
        rescaled(
            forward(student_nv, teacher_nv, self.temperature)?,
            self.temperature,
            self.scale_by_t2,
        )
    }

    fn rows_and_gradient(
        &self,
        student_nv: &mut Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
        factor: f64,
    ) -> Result<Option<Tensor>> {
        let teacher_nv = teacher("forward_kl", teacher_nv)?;
        let factor = factor * t2(self.temperature, self.scale_by_t2);
        let loss_n = forward_and_gradient(student_nv, teacher_nv, self.temperature, factor)?;
        rescaled(loss_n, self.temperature, self.scale_by_t2).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::Logits;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        for temperature in [1.0, 2.5] {
            let (q_nv, p_nv) = logits.softmaxes(temperature);
            // (q − p)/T, times T².
            let plain_nv = (q_nv - p_nv) / temperature;
            for (scale_by_t2, factor) in [(true, temperature * temperature), (false, 1.0)] {
                let loss = ForwardKl {
                    temperature,
                    scale_by_t2,
                };
                logits.assert_gradient(&loss, &(&plain_nv * factor));
            }
        }
    }
}
