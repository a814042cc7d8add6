//! Bases of the residual stream.

use minitron_core::error::Result;
use minitron_core::random::SplitMix;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, ParamKind, Role};
use tch::{Device, Kind, Tensor};

/// Eigenvectors as columns, by descending eigenvalue. Of a stream without a mean, the direction of
/// the mean comes last.
pub(super) fn principal_components(covariance_ee: &Tensor, is_centred: bool) -> Result<Tensor> {
    if !is_centred {
        let (_, ascending_ee) = covariance_ee.f_linalg_eigh("L")?;
        return Ok(ascending_ee.f_flip([1])?);
    }
    // Made the least of all by far.
    let n = covariance_ee.size2()?.0 as f64;
    let far = covariance_ee.f_trace()?.f_double_value(&[])?.max(1.0) / n;
    let (_, ascending_ee) = covariance_ee.f_sub_scalar(far)?.f_linalg_eigh("L")?;
    Ok(ascending_ee.f_flip([1])?)
}

/// A symmetric matrix without what it has of the direction of the mean.
pub(super) fn without_mean(square_ee: &Tensor) -> Result<Tensor> {
    let (rows, columns) = ([0i64], [1i64]);
    let means_e = square_ee.f_mean_dim(Some(rows.as_slice()), true, Kind::Double)?;
    let half_ee = square_ee.f_sub(&means_e)?;
    let means_e = half_ee.f_mean_dim(Some(columns.as_slice()), true, Kind::Double)?;
    Ok(half_ee.f_sub(&means_e)?)
}

/// What the projections that read the stream make of it: Σ diag(g)·WᵀW·diag(g) over those behind a
/// norm, each norm's sum divided by tr(·C), so that all count alike.
pub(super) fn needed(editor: &StudentEditor, covariance_ee: &Tensor) -> Result<Tensor> {
    let mut all_ee = covariance_ee.f_zeros_like()?;
    let mut add = |of_norm: Option<Tensor>| -> Result<()> {
        let Some(mut own_ee) = of_norm else {
            return Ok(());
        };
        if editor.is_centred() {
            own_ee = without_mean(&own_ee)?;
        }
        let share = own_ee.f_mul(covariance_ee)?.f_sum(Kind::Double)?;
        let share = share.f_double_value(&[])?.max(f64::MIN_POSITIVE);
        all_ee = all_ee.f_add(&own_ee.f_div_scalar(share)?)?;
        Ok(())
    };
    for layer in 0..editor.n_layers() {
        for (at, part) in editor.spec().sublayers(layer) {
            let readers = part.mixer.ports().readers;
            add(read_by(editor, at, &readers, Role::INPUT_NORM)?)?;
        }
    }
    let head = match editor.spec().options.tied {
        true => Role::TOKEN_EMBEDDING,
        false => Role::HEAD,
    };
    add(read_by(editor, At::Model, &[head], Role::FINAL_NORM)?)?;
    Ok(all_ee)
}

/// diag(g)·WᵀW·diag(g) summed over projections; of experts the mean over all times those of a
/// token.
fn read_by(editor: &StudentEditor, at: At, readers: &[Role], norm: Role) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for place in editor.spec().with_units(at) {
        for &role in readers {
            let Some(param) = editor.spec().find(place, role, ParamKind::Weight) else {
                continue;
            };
            let share = editor.spec().active_share(param);
            editor.for_rows_of_teacher(place, role, &mut |weight| {
                let n_channels = weight.size().last().copied().unwrap_or(1);
                let rows = weight.f_reshape([-1, n_channels])?;
                let square = rows.f_transpose(0, 1)?.f_matmul(&rows)?;
                let square = square.f_mul_scalar(share)?;
                sum = Some(match sum.take() {
                    Some(sum) => sum.f_add(&square)?,
                    None => square,
                });
                Ok(())
            })?;
        }
    }
    let Some(sum) = sum else {
        return Ok(None);
    };
    let gain_e = editor.teachers_gain(at, norm)?;
    Ok(Some(sum.f_mul(&gain_e.f_outer(&gain_e)?)?))
}

/// The K dimensions from which what readers make of the stream can be told best, in the sense of
/// least squares: with S = C^½ and u the leading eigenvectors of S·G·S, those that
/// G·S·u span.
pub(super) fn most_needed(
    covariance_ee: &Tensor,
    needed_ee: &Tensor,
    n_kept: i64,
) -> Result<Tensor> {
    let (values_e, vectors_ee) = covariance_ee.f_linalg_eigh("L")?;
    let roots_e = values_e.f_clamp_min(0.0)?.f_sqrt()?;
    let root_ee = vectors_ee
        .f_mul(&roots_e)?
        .f_matmul(&vectors_ee.f_transpose(0, 1)?)?;
    let seen_ee = root_ee.f_matmul(needed_ee)?.f_matmul(&root_ee)?;
    let (_, ascending_ee) = seen_ee.f_linalg_eigh("L")?;
    let leading_ek = ascending_ee.f_flip([1])?.f_narrow(1, 0, n_kept)?;
    Ok(needed_ee.f_matmul(&root_ee)?.f_matmul(&leading_ek)?)
}

/// An orthonormal basis whose first vectors span the given ones; of a stream without a mean, the
/// direction of the mean comes last.
pub(super) fn completed(span_ek: &Tensor, is_centred: bool) -> Result<Tensor> {
    let (n, n_kept) = span_ek.size2()?;
    if !is_centred {
        return Ok(Tensor::f_linalg_qr(span_ek, "complete")?.0);
    }
    let mean_e1 = Tensor::f_ones([n, 1], (Kind::Double, Device::Cpu))?;
    let span_ek = Tensor::f_cat(&[span_ek.shallow_clone(), mean_e1], 1)?;
    let (all_ee, _) = Tensor::f_linalg_qr(&span_ek, "complete")?;
    let kept_ek = all_ee.f_narrow(1, 0, n_kept)?;
    let mean_e1 = all_ee.f_narrow(1, n_kept, 1)?;
    let rest_er = all_ee.f_narrow(1, n_kept + 1, n - n_kept - 1)?;
    Ok(Tensor::f_cat(&[kept_ek, rest_er, mean_e1], 1)?)
}

/// Puts the direction of the mean, which comes last, among the first `n_kept` vectors and mixes
/// those, such that they add up to it: by the reflection that takes the last of `n_kept` axes to
/// their diagonal.
pub(super) fn with_mean(basis_ee: &Tensor, n_kept: i64) -> Result<Tensor> {
    let n = basis_ee.size2()?.1;
    let options = (Kind::Double, Device::Cpu);
    let mean_e1 = Tensor::f_full([n, 1], 1.0 / (n as f64).sqrt(), options)?;
    let kept_ek = Tensor::f_cat(&[basis_ee.f_narrow(1, 0, n_kept - 1)?, mean_e1], 1)?;
    let rest_er = basis_ee.f_narrow(1, n_kept - 1, n - n_kept)?;
    let eye_kk = Tensor::f_eye(n_kept, options)?;
    let diagonal_k = Tensor::f_full([n_kept], 1.0 / (n_kept as f64).sqrt(), options)?;
    let between_k = eye_kk.f_select(0, n_kept - 1)?.f_sub(&diagonal_k)?;
    let square = between_k.f_dot(&between_k)?.f_double_value(&[])?;
    let mirrored_kk = match square > 0.0 {
        true => {
            let twice_kk = between_k.f_outer(&between_k)?.f_mul_scalar(2.0 / square)?;
            eye_kk.f_sub(&twice_kk)?
        }
        false => eye_kk,
    };
    Ok(Tensor::f_cat(
        &[kept_ek.f_matmul(&mirrored_kk)?, rest_er],
        1,
    )?)
}

/// The same span of the first vectors in a random basis: Q of a matrix of normal draws.
pub(super) fn spread(basis_ee: &Tensor, n_kept: i64, seed: u64) -> Result<Tensor> {
    let mut random = SplitMix::new(seed);
    let draws: Vec<f64> = (0..n_kept * n_kept).map(|_| random.normal()).collect();
    let draws_kk = Tensor::f_from_slice(&draws)?.f_reshape([n_kept, n_kept])?;
    let (turn_kk, _) = Tensor::f_linalg_qr(&draws_kk, "reduced")?;
    let n_rest = basis_ee.size2()?.1 - n_kept;
    let kept_ek = basis_ee.f_narrow(1, 0, n_kept)?;
    let rest_er = basis_ee.f_narrow(1, n_kept, n_rest)?;
    Ok(Tensor::f_cat(&[kept_ek.f_matmul(&turn_kk)?, rest_er], 1)?)
}
