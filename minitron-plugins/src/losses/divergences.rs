//! What losses between distributions share: temperatures, log-probabilities, KL.

use minitron_core::contract::TeacherNeed;
use minitron_core::error::{Error, Result};
use serde::{Deserialize, Deserializer};
use tch::{Kind, Reduction, Tensor};

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

/// exp(x) in the memory of `place`, where that is of its type, or in new memory.
fn exp_in(place: &Tensor, x: &Tensor) -> Result<Tensor> {
    match place.f_kind()? == x.f_kind()? {
        true => Ok(x.f_exp_out(place)?),
        false => Ok(x.f_exp()?),
    }
}

/// Puts a gradient where it belongs: one of that place's type stands there already.
fn put(gradient_nv: &Tensor, place: &mut Tensor) -> Result<()> {
    if gradient_nv.f_kind()? != place.f_kind()? {
        place.f_copy_(gradient_nv)?;
    }
    Ok(())
}

/// [`forward`], and in place of the student's logits its gradient times `factor`: (q − p)/T.
pub(super) fn forward_and_gradient(
    student_nv: &mut Tensor,
    teacher_nv: &Tensor,
    temperature: f64,
    factor: f64,
) -> Result<Tensor> {
    let mut q_nv = log_softmax(student_nv, temperature)?;
    let mut terms_nv = log_softmax(&teacher_nv.f_detach()?, temperature)?;
    let mut p_nv = exp_in(student_nv, &terms_nv)?;
    let _ = terms_nv.f_sub_(&q_nv)?.f_mul_(&p_nv)?;
    let loss_n = terms_nv.f_sum_dim_intlist([-1i64].as_slice(), false, terms_nv.f_kind()?)?;
    let _ = p_nv.f_sub_(&q_nv.f_exp_()?)?;
    let _ = p_nv.f_mul_scalar_(-factor / temperature)?;
    put(&p_nv, student_nv)?;
    Ok(loss_n)
}

/// KL(student ‖ teacher) [N], and in place of the student's logits its gradient times `factor`:
/// q·(log q − log p − KL)/T.
pub(super) fn reverse_and_gradient(
    student_nv: &mut Tensor,
    teacher_nv: &Tensor,
    temperature: f64,
    factor: f64,
) -> Result<Tensor> {
    let mut ratio_nv = log_softmax(student_nv, temperature)?;
    let mut q_nv = exp_in(student_nv, &ratio_nv)?;
    let _ = ratio_nv.f_sub_(&log_softmax(&teacher_nv.f_detach()?, temperature)?)?;
    let loss_n =
        q_nv.f_mul(&ratio_nv)?
            .f_sum_dim_intlist([-1i64].as_slice(), false, ratio_nv.f_kind()?)?;
    let _ = ratio_nv.f_sub_(&loss_n.f_unsqueeze(-1)?)?;
    let _ = q_nv
        .f_mul_(&ratio_nv)?
        .f_mul_scalar_(factor / temperature)?;
    put(&q_nv, student_nv)?;
    Ok(loss_n)
}

/// −log q\[label\] [N], and in place of the logits its gradient times `factor`: q − 1 at the label,
/// q elsewhere.
pub(super) fn likelihood_and_gradient(
    logits_nv: &mut Tensor,
    labels_n: &Tensor,
    factor: f64,
) -> Result<Tensor> {
    let log_q_nv = log_softmax(logits_nv, 1.0)?;
    let nothing = None::<Tensor>;
    let loss_n = log_q_nv.f_nll_loss(labels_n, nothing, Reduction::None, -100)?;
    let mut q_nv = exp_in(logits_nv, &log_q_nv)?;
    let labels_n1 = labels_n.f_unsqueeze(-1)?;
    let minus_n1 = Tensor::f_full(labels_n1.size(), -1.0, (q_nv.f_kind()?, q_nv.device()))?;
    let _ = q_nv.f_scatter_add_(-1, &labels_n1, &minus_n1)?;
    let _ = q_nv.f_mul_scalar_(factor)?;
    put(&q_nv, logits_nv)?;
    Ok(loss_n)
}

/// What [`rescaled`] multiplies by.
pub(super) fn t2(temperature: f64, scale_by_t2: bool) -> f64 {
    if scale_by_t2 {
        temperature * temperature
    } else {
        1.0
    }
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
