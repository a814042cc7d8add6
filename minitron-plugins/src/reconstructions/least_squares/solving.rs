//! Ridge regression from sums over tokens.

use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::{Moments, ProjectionStats, StudentEditor};
use minitron_core::spec::At;
use tch::{Kind, Tensor};

/// What projections gain.
pub(super) struct Change {
    /// ΔW, or Δ of what readers lack.
    pub delta_ec: Tensor,
    /// Δb, or what readers lack beside it; none where biases stay.
    pub shift_e: Option<Tensor>,
}

/// What became of a regression.
pub(super) enum Solved {
    Change(Change),
    /// Nothing is lacking, or nothing to tell it from.
    Nothing,
    /// Some of X tells the rest, to all digits but those that rounding made, and the ridge is
    /// smaller than these.
    Singular,
}

impl Solved {
    /// What projections gain; with a ridge that was asked for, one that is too small is refused.
    pub fn or_refused(self, asked: Option<f64>) -> Result<Option<Change>> {
        match (self, asked) {
            (Solved::Change(change), _) => Ok(Some(change)),
            (Solved::Singular, Some(ridge)) => Err(Error::Recipe(format!(
                "least_squares: ridge={ridge:e} is too small where some of what a projection \
                 reads tells the rest; take a larger one"
            ))),
            _ => Ok(None),
        }
    }
}

/// What X·Wᵀ shows in place of X.
pub(super) fn seen_behind(moments: &Moments, weight_ec: &Tensor) -> Result<Moments> {
    let weight_ce = weight_ec.f_transpose(0, 1)?;
    Ok(Moments {
        xx_cc: weight_ec.f_matmul(&moments.xx_cc)?.f_matmul(&weight_ce)?,
        rx_ec: moments.rx_ec.f_matmul(&weight_ce)?,
        x_sum_c: weight_ec.f_matmul(&moments.x_sum_c)?,
        r_sum_e: moments.r_sum_e.shallow_clone(),
        ..*moments
    })
}

/// For texts too short to hold some of it out.
pub(super) const USUAL: f64 = 1e-3;

/// The ridge that leaves least of what was not fitted to, and how much.
pub(super) fn best_ridge(
    fitted_to: &Moments,
    held_out: &Moments,
    shifts: bool,
) -> Result<(Option<f64>, f64)> {
    let (mut best, mut least) = (None, held_out.r_squared);
    for ridge in [1.0, 1e-1, 1e-2, 1e-3, 1e-4] {
        let Solved::Change(change) = solved(fitted_to, ridge, shifts)? else {
            break;
        };
        let left = held_out.remaining(&change.delta_ec, change.shift_e.as_ref())?;
        // Less of it would be worse still.
        if left >= least && best.is_some() {
            break;
        }
        if left < least {
            (best, least) = (Some(ridge), left);
        }
    }
    Ok((best, least))
}

/// ΔW and, with `shifts`, Δb at this ridge.
///
/// # Errors
/// `Data` where sums are not finite.
pub(super) fn solved(moments: &Moments, ridge: f64, shifts: bool) -> Result<Solved> {
    let centred = shifts.then(|| moments.centred()).transpose()?;
    let sums = centred.as_ref().unwrap_or(moments);
    let diagonal_c = sums.xx_cc.f_diagonal(0, 0, 1)?;
    let mean = diagonal_c.f_mean(Kind::Double)?.f_double_value(&[])?;
    let most = sums.rx_ec.f_abs()?.f_max()?.f_double_value(&[])?;
    if !most.is_finite() || !mean.is_finite() {
        let message = "least_squares: activations are not finite on this text; if they overflow, \
                       take --dtype f32";
        return Err(Error::Data(message.into()));
    }
    if most == 0.0 || mean == 0.0 {
        return told_by_none(moments, shifts);
    }
    // In place: squares of wide projections are large.
    let rx_ce = sums.rx_ec.f_transpose(0, 1)?.copy();
    let ridged_cc = match centred {
        Some(centred) => centred.xx_cc,
        None => moments.xx_cc.copy(),
    };
    let _ = ridged_cc.f_diagonal(0, 0, 1)?.f_add_scalar_(ridge * mean)?;
    let Ok(lower_cc) = ridged_cc.f_linalg_cholesky(false) else {
        return Ok(Solved::Singular);
    };
    drop(ridged_cc);
    let delta_ec = rx_ce
        .f_cholesky_solve(&lower_cc, false)?
        .f_transpose(0, 1)?;
    let shift_e = shifts.then(|| moments.shift(&delta_ec)).transpose()?;
    Ok(Solved::Change(Change { delta_ec, shift_e }))
}

/// Where X says nothing of R: its mean, where a bias can hold it.
fn told_by_none(moments: &Moments, shifts: bool) -> Result<Solved> {
    let delta_ec = moments.rx_ec.f_zeros_like()?;
    let shift_e = moments.shift(&delta_ec)?;
    let is_lacking = shift_e.f_abs()?.f_max()?.f_double_value(&[])? > 0.0;
    Ok(match shifts && is_lacking {
        true => Solved::Change(Change {
            delta_ec,
            shift_e: Some(shift_e),
        }),
        false => Solved::Nothing,
    })
}

/// Whether layers were dropped behind a writer.
pub(super) fn is_before_dropped(editor: &StudentEditor, stats: &ProjectionStats) -> bool {
    let At::Sublayer { layer, sublayer } = stats.projections.at else {
        return false;
    };
    let is_last = sublayer + 1 == editor.spec().places(layer).count();
    let is_cut = editor.source_layer(layer) + 1 < editor.source_layer(layer + 1);
    stats.projections.is_writer && is_last && is_cut
}
