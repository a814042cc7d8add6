//! How far states lie apart.

use minitron_core::contract::States;
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::divergences::widened;

/// A distance between two states of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// 1 − cos over channels.
    #[default]
    Cosine,
    /// Mean over channels of the squared difference.
    Mse,
}

impl Distance {
    /// Mean over all tokens that are no padding, a scalar; 0 where there is no token. The teacher
    /// carries no gradient.
    ///
    /// # Errors
    /// As [`alike`].
    pub(super) fn between(self, tag: &str, student: &States, teacher: &States) -> Result<Tensor> {
        alike(tag, student, teacher)?;
        let student_nc = widened(&student.rows()?)?;
        let teacher_nc = widened(&teacher.rows()?.f_detach()?)?;
        let loss_n = self.of_rows(&student_nc, &teacher_nc)?;
        let n_tokens = loss_n.size1()?.max(1);
        Ok(loss_n.f_sum(loss_n.f_kind()?)?.f_div_scalar(n_tokens)?)
    }

    /// Of rows [N, C] of one size, [N].
    pub(super) fn of_rows(self, a_nc: &Tensor, b_nc: &Tensor) -> Result<Tensor> {
        match self {
            Distance::Cosine => one_minus_cos(a_nc, b_nc),
            Distance::Mse => mean_square(a_nc, b_nc),
        }
    }
}

/// Refuses states that are not of one shape.
///
/// # Errors
/// `Plugin`: the engine projects the student's first, where a loss asks it to.
pub(super) fn alike(tag: &str, student: &States, teacher: &States) -> Result<()> {
    let (found, expected) = (student.x_btc.size(), teacher.x_btc.size());
    match found == expected {
        true => Ok(()),
        false => Err(mismatch(
            tag,
            format!("expected states as the teacher's, {expected:?}, got {found:?}"),
        )),
    }
}

/// States that do not fit each other.
pub(super) fn mismatch(tag: &str, message: String) -> Error {
    Error::Plugin {
        tag: tag.to_owned(),
        origin: "state_loss".into(),
        message,
    }
}

/// 1 − cos over the last dimension as ½|a/|a| − b/|b||², which does not cancel between vectors that
/// hardly differ. A vector of zeros has the cosine 0 with any other.
pub(super) fn one_minus_cos(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, a_is_zero) = unit(a)?;
    let (b, b_is_zero) = unit(b)?;
    let distance =
        a.f_sub(&b)?
            .f_square()?
            .f_sum_dim_intlist([-1i64].as_slice(), false, a.f_kind()?)?;
    Ok(distance
        .f_add(&a_is_zero)?
        .f_add(&b_is_zero)?
        .f_mul_scalar(0.5)?)
}

/// Vectors over the last dimension at length 1, and how far the square of that length is from 1:
/// all of it for zeros, else nothing.
fn unit(x: &Tensor) -> Result<(Tensor, Tensor)> {
    const SMALLEST: f64 = 1e-8;
    let length = x
        .f_norm_scalaropt_dim(2, [-1i64].as_slice(), true)?
        .f_clamp_min(SMALLEST)?;
    let is_zero = length
        .f_detach()?
        .f_le(SMALLEST)?
        .f_to_kind(x.f_kind()?)?
        .f_squeeze_dim(-1)?;
    Ok((x.f_div(&length)?, is_zero))
}

/// Mean over the last dimension of the squared difference.
pub(super) fn mean_square(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let squares = a.f_sub(b)?.f_square()?;
    Ok(squares.f_mean_dim([-1i64].as_slice(), false, squares.f_kind()?)?)
}
