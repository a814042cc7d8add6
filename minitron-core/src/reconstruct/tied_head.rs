//! A token table that serves as the head too, behind another model's final norm.

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::kept::kept_channels;
use super::projections::{Moments, exact};
use super::rotated::{gain_of, has_layer_norms};
use crate::error::Result;
use crate::spec::{At, HIDDEN, ModelSpec, Param, ParamKind, Role};

/// What the logits of a student with tied embeddings say about its final norm. With T [V, K] its
/// table and H [V, E] the teacher's head, which differ by how the stream was turned or cut and by
/// the teacher's final gain:
///
/// ```text
/// tt_kk = TᵀT        th_ke = TᵀH
/// ```
/// f64, on the CPU. Products over the vocabulary in f32.
#[derive(Debug)]
pub struct TiedHead {
    /// TᵀT.
    pub tt_kk: Tensor,
    /// TᵀH.
    pub th_ke: Tensor,
    /// Whether the final norm adds something.
    pub has_bias: bool,
    /// The teacher's channels that the student kept.
    kept_k: Tensor,
    /// TᵀH' of the same channels, H' the head as it is to a stream without mean.
    same_k: Tensor,
    /// ‖H'‖².
    head_squared: f64,
    /// Tᵀ·(what the teacher's final norm adds, through its own head).
    tb_k: Option<Tensor>,
}

/// Rows of a table that are looked at together.
const ROWS: usize = 4096;

impl StudentEditor<'_> {
    /// What ties the student's head to its table; `None` where it has a head of its own, no logits,
    /// or a table that a reconstruction replaced.
    ///
    /// # Errors
    /// As reading does.
    pub fn tied_head(&self) -> Result<Option<TiedHead>> {
        let (source, spec) = (self.inputs.source, self.inputs.spec);
        let table = spec.find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight);
        let own = self
            .spec()
            .find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight);
        let (Some(table), Some(own)) = (table, own) else {
            return Ok(None);
        };
        let is_plain = self.spec().options.tied && self.spec().options.head.is_some();
        let has_transform = spec
            .find(At::Model, Role::HEAD_TRANSFORM, ParamKind::Weight)
            .is_some();
        let gain = spec.find(At::Model, Role::FINAL_NORM, ParamKind::Weight);
        let Some(gain) = gain.filter(|_| is_plain && !has_transform) else {
            return Ok(None);
        };
        if self.changes.get(&own.name()).is_some() {
            return Ok(None);
        }
        let (name, n_hidden) = (table.name(), spec.size(HIDDEN));
        let n_rows = source
            .info(&name)
            .map_or(0, |info| info.shape.first().copied().unwrap_or(0));
        let mut square_ee = Tensor::f_zeros([1], (Kind::Double, Device::Cpu))?;
        for first in (0..n_rows).step_by(ROWS) {
            let rows = first..n_rows.min(first.saturating_add(ROWS));
            let rows_re = source.read_rows(&name, rows)?.f_to_kind(Kind::Float)?;
            square_ee =
                square_ee.f_add(&exact(&rows_re.f_transpose(0, 1)?.f_matmul(&rows_re)?)?)?;
        }
        let (own_ek, head_ee, last_ek) = self.ways_through(gain, n_hidden as i64)?;
        let factor = self.factors.get(&own.name()).copied().unwrap_or(1.0);
        let own_ek = own_ek.f_mul_scalar(factor)?;
        let ts_ke = own_ek.f_transpose(0, 1)?.f_matmul(&square_ee)?;
        let head_squared = last_ek.f_mul(&square_ee.f_matmul(&last_ek)?)?;
        let bias = spec.find(At::Model, Role::FINAL_NORM, ParamKind::Bias);
        let bias_e = bias
            .map(|bias| exact(&source.read(&bias.name())?))
            .transpose()?;
        Ok(Some(TiedHead {
            tt_kk: ts_ke.f_matmul(&own_ek)?,
            th_ke: ts_ke.f_matmul(&head_ee)?,
            head_squared: head_squared.f_sum(Kind::Double)?.f_double_value(&[])?,
            same_k: ts_ke.f_matmul(&last_ek)?.f_diagonal(0, 0, 1)?.copy(),
            kept_k: self.kept_places()?,
            has_bias: bias_e.is_some(),
            tb_k: bias_e.map(|bias_e| ts_ke.f_matmul(&bias_e)).transpose()?,
        }))
    }

    fn kept_places(&self) -> Result<Tensor> {
        let kept: Vec<i64> = self
            .kept(HIDDEN)
            .iter()
            .map(|&channel| channel as i64)
            .collect();
        Ok(Tensor::f_from_slice(&kept)?)
    }

    /// From the source's table to the student's, to the teacher's head as it runs here, and to its
    /// kept channels as a stream without mean sees them.
    fn ways_through(&self, gain: &Param, n_hidden: i64) -> Result<(Tensor, Tensor, Tensor)> {
        let eye_ee = Tensor::f_eye(n_hidden, (Kind::Double, Device::Cpu))?;
        let Some(rotation) = &self.rotation else {
            let own_ek = kept_channels(self, &eye_ee, 1)?;
            return Ok((own_ek.shallow_clone(), eye_ee, own_ek));
        };
        let basis_ee = exact(&rotation.basis_ee)?;
        let gain_e1 = gain_of(self.inputs.source, self.inputs.spec, gain)?.f_unsqueeze(1)?;
        let head_ee = basis_ee.f_mul(&gain_e1)?;
        let mut own_ek = kept_channels(self, &basis_ee, 1)?;
        if has_layer_norms(self.inputs.spec) {
            let mean_k = own_ek.f_mean_dim(Some([0i64].as_slice()), true, Kind::Double)?;
            own_ek = own_ek.f_sub(&mean_k)?;
        }
        let last_ek = own_ek.f_mul(&gain_e1)?;
        Ok((own_ek, head_ee, last_ek))
    }
}

impl TiedHead {
    /// The final gain of a table that was turned, before any text is seen: s_j = ⟨T_j, H_j⟩ /
    /// ⟨T_j, T_j⟩; and what the norm adds, such that T·b' is nearest to what the teacher's adds to
    /// its logits. A table that lost its mean knows nothing of what is added to all channels alike.
    pub(super) fn start(&self, editor: &mut StudentEditor) -> Result<()> {
        let own_k = self.tt_kk.f_diagonal(0, 0, 1)?;
        let gain_k = self.same_k.f_div(&own_k.f_clamp_min(f64::MIN_POSITIVE)?)?;
        editor.set_gain(At::Model, Role::FINAL_NORM, &gain_k)?;
        let kept = gain_k.f_dot(&self.same_k)?.f_double_value(&[])?;
        let missed = 1.0 - kept / self.head_squared.max(f64::MIN_POSITIVE);
        if let Some(text) = editor.inputs.calibration.filter(|_| missed > MUCH) {
            let n_more = elements(editor.spec());
            text.progress.warn(&format!(
                "the tied token table loses {:.1} % of the head, whose final gain is uneven; \
                 `rotation` with untie=true keeps it, for {n_more} more parameters",
                100.0 * missed
            ));
        }
        if let Some(tb_k) = &self.tb_k {
            let bias_k = solved(&self.tt_kk, tb_k, TINY)?;
            editor.replace(At::Model, Role::FINAL_NORM, ParamKind::Bias, &bias_k)?;
        }
        Ok(())
    }

    /// The factors 1 + d of the final gain, and what is added to the norm's bias where it has one,
    /// that bring the logits nearest to the teacher's over the tokens of `moments`, whose X is what
    /// the student's norm gives and whose R is what it lacks of the teacher's:
    ///
    /// ```text
    /// min ‖(X·diag(1 + d) + 1·βᵀ)·Tᵀ − Z·Hᵀ‖²        Z = R + X at the kept channels
    /// (TᵀT ∘ XᵀX)·(1 + d) = diag(TᵀH·ZᵀX)              X, Z less their means where there is a β
    /// TᵀT·β = TᵀH·z̄ − TᵀT·((1 + d) ∘ x̄)
    /// ```
    /// The ridge, relative to the mean diagonal, pulls d towards 0.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn refit(&self, moments: &Moments, ridge: f64) -> Result<(Tensor, Option<Tensor>)> {
        let n = moments.n_tokens.max(1) as f64;
        let (mut xx_kk, mut zx_ek) = (moments.xx_cc.shallow_clone(), moments.rx_ec.copy());
        let _ = zx_ek.f_index_add_(0, &self.kept_k, &xx_kk)?;
        let x_k = moments.x_sum_c.f_div_scalar(n)?;
        let mut z_e = moments.r_sum_e.f_div_scalar(n)?;
        let _ = z_e.f_index_add_(0, &self.kept_k, &x_k)?;
        if self.has_bias {
            xx_kk = xx_kk.f_sub(&x_k.f_outer(&x_k)?.f_mul_scalar(n)?)?;
            zx_ek = zx_ek.f_sub(&z_e.f_outer(&x_k)?.f_mul_scalar(n)?)?;
        }
        let square_kk = self.tt_kk.f_mul(&xx_kk)?;
        let wanted_k = self.th_ke.f_mul(&zx_ek.f_transpose(0, 1)?)?;
        let wanted_k = wanted_k.f_sum_dim_intlist(1i64, false, Kind::Double)?;
        let lacking_k =
            wanted_k.f_sub(&square_kk.f_sum_dim_intlist(1i64, false, Kind::Double)?)?;
        let factor_k = solved(&square_kk, &lacking_k, ridge)?.f_add_scalar(1.0)?;
        let bias_k = match self.has_bias {
            true => {
                let lacking_k = self.th_ke.f_matmul(&z_e)?;
                let given_k = self.tt_kk.f_matmul(&factor_k.f_mul(&x_k)?)?;
                Some(solved(&self.tt_kk, &lacking_k.f_sub(&given_k)?, TINY)?)
            }
            false => None,
        };
        Ok((factor_k, bias_k))
    }
}

/// A share of the head's squares that is worth a warning.
const MUCH: f64 = 0.01;

/// Numbers of a token table.
fn elements(spec: &ModelSpec) -> u64 {
    let table = spec.find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight);
    let sides = table.into_iter().flat_map(|table| &table.sides);
    sides.fold(1, |n, side| n * spec.len(side) as u64)
}

/// A table that lost its mean has a direction in which nothing lies.
const TINY: f64 = 1e-6;

/// (A + λ·m·I)⁻¹·y, m the mean diagonal of A; zeros where A holds nothing.
fn solved(square_kk: &Tensor, wanted_k: &Tensor, ridge: f64) -> Result<Tensor> {
    let diagonal_k = square_kk.f_diagonal(0, 0, 1)?;
    let mean = diagonal_k.f_mean(Kind::Double)?.f_double_value(&[])?;
    if !mean.is_normal() || mean < 0.0 {
        return Ok(wanted_k.f_zeros_like()?);
    }
    let eye_kk = Tensor::f_eye(diagonal_k.size1()?, (Kind::Double, Device::Cpu))?;
    // Of even size first: tiny weights squared twice would leave nothing to divide by.
    let ridged_kk = square_kk
        .f_div_scalar(mean)?
        .f_add(&eye_kk.f_mul_scalar(ridge)?)?;
    let solved_k1 = wanted_k
        .f_div_scalar(mean)?
        .f_unsqueeze(1)?
        .f_cholesky_solve(&ridged_kk.f_linalg_cholesky(false)?, false)?;
    Ok(solved_k1.f_squeeze_dim(1)?)
}
