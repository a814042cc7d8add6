//! What projections gain, put into the student.

use minitron_core::error::Result;
use minitron_core::reconstruct::{Moments, ProjectionStats, StudentEditor};
use minitron_core::spec::{At, ParamKind, Role};
use tch::{Device, Kind, Tensor};

use super::solving::Change;

/// A norm: its gain, and what it adds.
pub(super) fn refit_norm(
    editor: &mut StudentEditor,
    (at, role): (At, Role),
    (factor_k, added_k): &(Tensor, Option<Tensor>),
) -> Result<()> {
    let gain_k = editor.gain(at, role)?.f_mul(factor_k)?;
    editor.set_gain(at, role, &gain_k)?;
    if let Some(added_k) = added_k {
        let bias_k = editor.read(at, role, ParamKind::Bias)?;
        let bias_k = bias_k.f_mul(factor_k)?.f_add(added_k)?;
        editor.replace(at, role, ParamKind::Bias, &bias_k)?;
    }
    Ok(())
}

pub(super) fn refit(
    editor: &mut StudentEditor,
    (at, role): (At, Role),
    stats: &ProjectionStats,
    (change, is_again): (&Change, bool),
) -> Result<()> {
    let delta_ec = &change.delta_ec;
    match (stats.projections.is_writer, stats.projections.from) {
        (true, _) => {
            let weight = editor.read(at, role, ParamKind::Weight)?.f_add(delta_ec)?;
            editor.replace(at, role, ParamKind::Weight, &weight)?;
        }
        (false, Some(from)) => editor.refit_taken_reader(at, role, delta_ec, from)?,
        // Δ says what plain readers lack, and those of an earlier sweep have theirs already.
        (false, None) => editor.refit_reader(at, role, delta_ec, is_again)?,
    }
    let is_writer = stats.projections.is_writer;
    let shift_e = match &change.shift_e {
        Some(shift_e) => shift_e.shallow_clone(),
        // Readers begin anew, their biases with them.
        None if is_again && !is_writer && editor.has(at, role, ParamKind::Bias) => {
            Tensor::f_zeros([stats.all.r_sum_e.size1()?], (Kind::Double, Device::Cpu))?
        }
        None => return Ok(()),
    };
    match (is_writer, stats.projections.from) {
        (true, _) => {
            let shift_e = shift_e.f_div_scalar(stats.scale)?;
            let bias_e = editor.read(at, role, ParamKind::Bias)?.f_add(&shift_e)?;
            editor.replace(at, role, ParamKind::Bias, &bias_e)
        }
        (false, Some(from)) => editor.shift_taken_reader(at, role, &shift_e, from),
        (false, None) => editor.shift_reader(at, role, &shift_e, is_again),
    }
}

/// The norm after a sum: of each channel the line from what it gives to what it should.
pub(super) fn refit_sum_norm(editor: &mut StudentEditor, stats: &ProjectionStats) -> Result<()> {
    let (at, role) = (stats.projections.at, Role::SUM_NORM);
    let shifts = editor.has(at, role, ParamKind::Bias);
    if let Some(held_out) = &stats.held_out {
        let (slope_k, shift_k) = line(&stats.all.without(held_out)?, shifts)?;
        let left = held_out.remaining(&slope_k.f_diag(0)?, shift_k.as_ref())?;
        if left >= held_out.r_squared {
            return Ok(());
        }
    }
    let (slope_k, shift_k) = line(&stats.all, shifts)?;
    refit_norm(editor, (at, role), &(slope_k.f_add_scalar(1.0)?, shift_k))
}

/// The slope and, with `shifts`, the height of R over X, channel by channel; 0 where X is constant.
fn line(moments: &Moments, shifts: bool) -> Result<(Tensor, Option<Tensor>)> {
    let centred = shifts.then(|| moments.centred()).transpose()?;
    let sums = centred.as_ref().unwrap_or(moments);
    let square_k = sums.xx_cc.f_diagonal(0, 0, 1)?;
    let product_k = sums.rx_ec.f_diagonal(0, 0, 1)?;
    // What is left of a constant by rounding is no variance.
    let least_k = moments.xx_cc.f_diagonal(0, 0, 1)?.f_mul_scalar(1e-9)?;
    let varies_k = square_k.f_gt_tensor(&least_k)?;
    let slope_k = product_k.f_div(&square_k)?;
    let slope_k = slope_k.f_where_self(&varies_k, &slope_k.f_zeros_like()?)?;
    let shift_k = shifts.then(|| moments.shift(&slope_k.f_diag(0)?));
    Ok((slope_k, shift_k.transpose()?))
}
