use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use tch::Tensor;

use super::divergences::{kl, log_softmax, need, rescaled, teacher, temperature};

/// Generalised Jensen–Shannon divergence: `beta`·KL(p ‖ m) + (1 − `beta`)·KL(q ‖ m) over the
/// vocabulary with m = `beta`·p + (1 − `beta`)·q, p and q the softmax of the teacher's and the
/// student's logits / `temperature`, times `temperature`². In nats, at most ln 2 before that
/// factor.
///
/// Divided by `beta` it tends to the forward divergence for `beta` towards 0, and divided by 1 −
/// `beta` to the reverse one for `beta` towards 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JensenShannon {
    /// The teacher's share in the mixture, between 0 and 1.
    #[serde(deserialize_with = "share")]
    pub beta: f64,
    /// Divides both logits.
    #[serde(deserialize_with = "temperature")]
    pub temperature: f64,
    /// The factor `temperature`², by which gradients keep their size.
    pub scale_by_t2: bool,
}

impl Default for JensenShannon {
    fn default() -> Self {
        JensenShannon {
            beta: 0.5,
            temperature: 1.0,
            scale_by_t2: true,
        }
    }
}

minitron_core::plugin! {
    LogitLoss for JensenShannon {
        tag: "jensen_shannon",
        summary: "generalised Jensen–Shannon divergence between the teacher's distribution and the \
                  student's",
        source: "arXiv 2306.13649 (GKD), section 2",
    }
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if value > 0.0 && value < 1.0 {
        return Ok(value);
    }
    let message = format!(
        "beta: expected a number above 0 and below 1, got {value}; the ends are forward_kl, \
         reverse_kl"
    );
    Err(serde::de::Error::custom(message))
}

#[typetag::serde(name = "jensen_shannon")]
impl LogitLoss for JensenShannon {
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
            &teacher("jensen_shannon", teacher_nv)?.f_detach()?,
            self.temperature,
        )?;
        let log_q_nv = log_softmax(student_nv, self.temperature)?;
        // In log space: a token that neither gives a probability above the smallest float still has
        // a finite logarithm.
        let weighted_q_nv = log_q_nv.f_add_scalar((-self.beta).ln_1p())?;
        let log_m_nv = log_p_nv
            .f_add_scalar(self.beta.ln())?
            .f_logaddexp(&weighted_q_nv)?;
        let of_teacher_n = kl(&log_p_nv, &log_m_nv)?.f_mul_scalar(self.beta)?;
        let of_student_n = kl(&log_q_nv, &log_m_nv)?.f_mul_scalar(1.0 - self.beta)?;
        rescaled(
            of_teacher_n.f_add(&of_student_n)?,
            self.temperature,
            self.scale_by_t2,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::{Logits, through_softmax};

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        for (beta, temperature) in [(0.5, 1.0), (0.2, 1.0), (0.7, 2.5)] {
            let (q_nv, p_nv) = logits.softmaxes(temperature);
            let mixture_nv = p_nv * beta + &q_nv * (1.0 - beta);
            // Through the softmax of s/T, times T²: the gradient in q is (1 − β)·log(q/m).
            let in_q_nv = (q_nv.log() - mixture_nv.log()) * (1.0 - beta);
            let expected_nv = through_softmax(&q_nv, &in_q_nv) * temperature;
            let loss = JensenShannon {
                beta,
                temperature,
                scale_by_t2: true,
            };
            logits.assert_gradient(&loss, &expected_nv);
        }
    }
}
