//! What losses between distributions share: temperatures, log-probabilities, KL.

use minitron_core::contract::TeacherNeed;
use minitron_core::error::{Error, Result};
use serde::{Deserialize, Deserializer};
use tch::{Kind, Tensor};

/// Reads a temperature.
pub(super) fn temperature<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(serde::de::Error::custom(format!(
        "temperature: expected a positive number, got {value}"
    )))
}

/// What the engine promises to a loss that needs a teacher. It carries no gradient.
pub(super) fn teacher<'a>(tag: &str, teacher_nv: Option<&'a Tensor>) -> Result<&'a Tensor> {
    teacher_nv.ok_or_else(|| Error::Internal(format!("{tag} was given no teacher")))
}

/// What of the teacher a divergence over the whole vocabulary needs: at temperature 1 the tokens
/// that are not told apart count as one, at any other their mass depends on each.
pub(super) fn need(temperature: f64) -> TeacherNeed {
    TeacherNeed::Distribution {
        n_tokens: if temperature == 1.0 {
            0
        } else {
            TeacherNeed::ALL
        },
    }
}

/// The same in f32 where it was in a smaller type; f64 stays.
pub(super) fn widened(x: &Tensor) -> Result<Tensor> {
    match x.f_kind()? {
        Kind::Float | Kind::Double => Ok(x.shallow_clone()),
        _ => Ok(x.f_to_kind(Kind::Float)?),
    }
}

/// log softmax(logits / temperature) over the last dimension, in f32 at least. Finite for finite
/// logits.
pub(super) fn log_softmax(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = widened(logits)?;
    let scaled = if temperature == 1.0 {
        logits
    } else {
        logits.f_div_scalar(temperature)?
    };
    Ok(scaled.f_log_softmax(-1, scaled.f_kind()?)?)
}

/// KL(p ‖ q) = Σ p·(log p − log q) over the last dimension, in nats. Equal arguments give exactly
/// 0.
pub(super) fn kl(log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    let terms = log_p.f_exp()?.f_mul(&log_p.f_sub(log_q)?)?;
    Ok(terms.f_sum_dim_intlist([-1i64].as_slice(), false, terms.f_kind()?)?)
}

/// Times temperature² where asked for (Hinton et al. 2015): gradients of logits divided by T shrink
/// by T².
pub(super) fn rescaled(loss_n: Tensor, temperature: f64, scale_by_t2: bool) -> Result<Tensor> {
    if !scale_by_t2 || temperature == 1.0 {
        return Ok(loss_n);
    }
    Ok(loss_n.f_mul_scalar(temperature * temperature)?)
}

/// KL(teacher ‖ student) [N] of logits [N, V]. The teacher's part carries no gradient.
pub(crate) fn forward(
    student_nv: &Tensor,
    teacher_nv: &Tensor,
    temperature: f64,
) -> Result<Tensor> {
    kl(
        &log_softmax(&teacher_nv.f_detach()?, temperature)?,
        &log_softmax(student_nv, temperature)?,
    )
}
