use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// KL(teacher ‖ student) = Σᵥ p·(log p − log q) over the vocabulary, p and q the softmax of logits / `temperature`, times
/// `temperature`² (Hinton et al. 2015) so that gradients keep their size. In nats.
///
/// The paper found temperature 1 best and this loss alone better than a sum with others (section 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardKl {
    /// Divides both logits.
    #[serde(deserialize_with = "positive")]
    pub temperature: f64,
}

impl Default for ForwardKl {
    fn default() -> Self {
        ForwardKl { temperature: 1.0 }
    }
}

minitron_core::plugin! {
    LogitLoss for ForwardKl {
        tag: "forward_kl",
        summary: "KL divergence from the teacher's distribution to the student's",
        source: "arXiv 2407.14679, section 3 (L_logits)",
    }
}

fn positive<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(serde::de::Error::custom(format!("temperature: expected a positive number, got {value}")))
}

#[typetag::serde(name = "forward_kl")]
impl LogitLoss for ForwardKl {
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Distribution
    }

    fn rows(&self, student_nv: &Tensor, teacher_nv: Option<&Tensor>, _labels_n: &Tensor) -> Result<Tensor> {
        let teacher_nv = teacher_nv.ok_or_else(|| Error::Internal("forward_kl was given no teacher".into()))?;
        divergence(student_nv, teacher_nv, self.temperature)
    }
}

/// [N] from logits [N, V], in f32. Equal logits give exactly 0; the teacher's part carries no gradient.
pub(crate) fn divergence(student_nv: &Tensor, teacher_nv: &Tensor, temperature: f64) -> Result<Tensor> {
    let log_probabilities = |logits: &Tensor| -> Result<Tensor> {
        let logits = logits.f_to_kind(Kind::Float)?;
        let scaled = if temperature == 1.0 { logits } else { logits.f_div_scalar(temperature)? };
        Ok(scaled.f_log_softmax(-1, Kind::Float)?)
    };
    let log_p_nv = log_probabilities(teacher_nv)?;
    let p_nv = log_p_nv.f_exp()?;
    let difference_nv = log_p_nv.f_sub(&log_probabilities(student_nv)?)?;
    let loss_n = p_nv.f_mul(&difference_nv)?.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)?;
    Ok(loss_n.f_mul_scalar(temperature * temperature)?)
}
