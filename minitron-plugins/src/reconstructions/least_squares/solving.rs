//! Ridge regression from sums over tokens.

use minitron_core::error::Result;
use minitron_core::reconstruct::{Moments, ProjectionStats, StudentEditor};
use minitron_core::spec::At;
use tch::{Kind, Tensor};

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
pub(super) fn best_ridge(fitted_to: &Moments, held_out: &Moments) -> Result<(Option<f64>, f64)> {
    let (mut best, mut least) = (None, held_out.r_squared);
    for ridge in [1.0, 1e-1, 1e-2, 1e-3, 1e-4] {
        let Some(delta_ec) = solved(fitted_to, ridge)? else {
            break;
        };
        let left = held_out.remaining(&delta_ec)?;
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

pub(super) fn solved(moments: &Moments, ridge: f64) -> Result<Option<Tensor>> {
    let diagonal_c = moments.xx_cc.f_diagonal(0, 0, 1)?;
    let mean = diagonal_c.f_mean(Kind::Double)?.f_double_value(&[])?;
    let most = moments.rx_ec.f_abs()?.f_max()?.f_double_value(&[])?;
    if most == 0.0 || mean == 0.0 {
        return Ok(None);
    }
    // In place: squares of wide projections are large.
    let ridged_cc = moments.xx_cc.copy();
    let _ = ridged_cc.f_diagonal(0, 0, 1)?.f_add_scalar_(ridge * mean)?;
    let lower_cc = ridged_cc.f_linalg_cholesky(false)?;
    drop(ridged_cc);
    let delta_ce = moments
        .rx_ec
        .f_transpose(0, 1)?
        .f_cholesky_solve(&lower_cc, false)?;
    Ok(Some(delta_ce.f_transpose(0, 1)?))
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
