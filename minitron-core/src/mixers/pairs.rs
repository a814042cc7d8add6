//! How much the pairs of channels that turn together weigh.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// What share each pair has of a token's queries, of its keys and of its values over all heads,
/// together [B, T, P]: with q the channels of all queries of a token,
///
/// ```text
/// share(p)² = ‖q_p‖² / ‖q‖² + ‖k_p‖² / ‖k‖² + ‖v_p‖² / ‖v‖²
/// ```
pub(super) fn shares_of_pairs(heads: [&Tensor; 3], n_pairs: i64) -> Result<Tensor> {
    let mut sum_btp: Option<Tensor> = None;
    for x_bthk in heads {
        let (n_batch, n_tokens, n_heads, _) = x_bthk.size4()?;
        let turning = x_bthk
            .f_narrow(3, 0, 2 * n_pairs)?
            .f_to_kind(Kind::Float)?
            .f_square()?;
        let square_bthsp = turning.f_reshape([n_batch, n_tokens, n_heads, 2, n_pairs])?;
        let square_btp =
            square_bthsp.f_sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float)?;
        let all_bt1 = square_btp.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?;
        // Keeps a token without any at zero.
        let share_btp = square_btp.f_div(&all_bt1.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?;
        sum_btp = Some(match sum_btp {
            None => share_btp,
            Some(sum_btp) => sum_btp.f_add(&share_btp)?,
        });
    }
    let sum_btp = sum_btp.ok_or_else(|| Error::Internal("no heads to take shares of".into()))?;
    Ok(sum_btp.f_sqrt()?)
}
