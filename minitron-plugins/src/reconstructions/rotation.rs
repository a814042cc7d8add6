use std::collections::BTreeMap;

use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::random::SplitMix;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, HIDDEN, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Keeps principal components of the residual stream instead of channels.
///
/// With z = x / rms(x) [N, E] at a norm, summed over the norms of all kept layers and the final
/// one,
///
/// ```text
/// C = Σ zᵀz / N = Q·diag(e)·Qᵀ            e descending, by eigh in f64
/// ```
/// the whole model is turned by Q (tables T·Q, readers W·diag(g)·Q, writers Qᵀ·W), which changes
/// nothing, and the first d' of d components stay. The mean square of what stays is smaller than
/// that of the whole, so each norm would blow it up; its gain becomes c = sqrt(Σ_{i<d'} E[z_i²] /
/// d'), with z the turned input of that very norm. It comes first among reconstructions, and does
/// nothing where all channels are kept.
///
/// Layer norms take the mean over channels out of z. Their students keep the direction of the mean,
/// in which nothing lies, and d' − 1 components, mixed such that the mean over the d' kept channels
/// is that very direction.
///
/// Tied embeddings stay tied, and the final gain, of which the head alone wants to know, becomes
/// the one that fits the table best; with `untie` they come apart, and the student has a head of
/// its own.
///
/// The gains being one number each, any orthogonal map among the d' components is free. With
/// `spread`, a random one (the run's seed) evens out their energy, which otherwise lies in the
/// first: the same student in f32, but quantised it errs less.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// Whether the kept components are turned among themselves, so that their energy is even.
    pub spread: bool,
    /// Whether tied embeddings come apart.
    pub untie: bool,
}

minitron_core::plugin! {
    Reconstruction for Rotation {
        tag: "rotation",
        summary: "principal components of the residual stream in the place of channels",
        source: "arXiv 2401.15024 (SliceGPT), section 3",
    }
}

#[typetag::serde(name = "rotation")]
impl Reconstruction for Rotation {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        editor.check_rebase()?;
        let n_hidden = editor.teacher_spec().size(HIDDEN);
        let n_kept = editor.spec().size(HIDDEN);
        if n_kept == n_hidden {
            return Ok(());
        }
        let (n_kept, is_centred) = (n_kept as i64, editor.is_centred());
        let mut basis_ee = principal_components(&covariance(editor)?, is_centred)?;
        if self.spread {
            basis_ee = spread(&basis_ee, n_kept - i64::from(is_centred), editor.seed())?;
        }
        if is_centred {
            basis_ee = with_mean(&basis_ee, n_kept)?;
        }
        editor.rotate_residual(&basis_ee, self.untie)?;
        for ((at, role), gain) in gains(editor, n_kept)? {
            editor.scale_gain(at, role, gain)?;
        }
        Ok(())
    }
}

/// Σ zᵀz over tokens and norms.
fn covariance(editor: &StudentEditor) -> Result<Tensor> {
    let mut sums = editor.sum_over_norms(&mut |_, role, z_ne| {
        let square_ee = z_ne.f_transpose(0, 1)?.f_matmul(z_ne)?;
        Ok(is_on_stream(role).then_some(((), vec![square_ee])))
    })?;
    let sum_ee = sums.remove(&()).and_then(|mut sums| sums.pop());
    let message = "rotation: no norm of this model stands on its residual stream";
    sum_ee.ok_or_else(|| Error::Recipe(message.into()))
}

fn is_on_stream(role: Role) -> bool {
    [Role::INPUT_NORM, Role::FINAL_NORM].contains(&role)
}

/// Eigenvectors as columns, by descending eigenvalue. Of a stream without a mean, the direction of
/// the mean comes last.
fn principal_components(covariance_ee: &Tensor, is_centred: bool) -> Result<Tensor> {
    if !is_centred {
        let (_, ascending_ee) = covariance_ee.f_linalg_eigh("L")?;
        return Ok(ascending_ee.f_flip([1])?);
    }
    // Made the least of all by far, and the others' share of it taken out.
    let n = covariance_ee.size2()?.0;
    let mean = [0i64];
    let rows_ee = covariance_ee.f_sub(&covariance_ee.f_mean_dim(
        Some(mean.as_slice()),
        true,
        Kind::Double,
    )?)?;
    let of_rows = [1i64];
    let both_ee =
        rows_ee.f_sub(&rows_ee.f_mean_dim(Some(of_rows.as_slice()), true, Kind::Double)?)?;
    let far = both_ee.f_trace()?.f_double_value(&[])?.max(1.0) / n as f64;
    let (_, ascending_ee) = both_ee.f_sub_scalar(far)?.f_linalg_eigh("L")?;
    Ok(ascending_ee.f_flip([1])?)
}

/// Puts the direction of the mean, which comes last, among the first `n_kept` vectors and mixes
/// those, such that they add up to it: by the reflection that takes the last of `n_kept` axes to
/// their diagonal.
fn with_mean(basis_ee: &Tensor, n_kept: i64) -> Result<Tensor> {
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
fn spread(basis_ee: &Tensor, n_kept: i64, seed: u64) -> Result<Tensor> {
    let mut random = SplitMix::new(seed);
    let draws: Vec<f64> = (0..n_kept * n_kept).map(|_| random.normal()).collect();
    let draws_kk = Tensor::f_from_slice(&draws)?.f_reshape([n_kept, n_kept])?;
    let (turn_kk, _) = Tensor::f_linalg_qr(&draws_kk, "reduced")?;
    let n_rest = basis_ee.size2()?.1 - n_kept;
    let kept_ek = basis_ee.f_narrow(1, 0, n_kept)?;
    let rest_er = basis_ee.f_narrow(1, n_kept, n_rest)?;
    Ok(Tensor::f_cat(&[kept_ek.f_matmul(&turn_kk)?, rest_er], 1)?)
}

/// c of every norm.
fn gains(editor: &StudentEditor, n_kept: i64) -> Result<BTreeMap<(At, Role), f64>> {
    let sums = editor.sum_over_norms(&mut |at, role, z_ne| {
        let kept = z_ne
            .f_narrow(1, 0, n_kept.min(z_ne.size2()?.1))?
            .f_square()?;
        let numbers = [
            f64::try_from(kept.f_sum(Kind::Double)?)?,
            kept.numel() as f64,
        ];
        let shown = vec![Tensor::f_from_slice(&numbers)?];
        Ok(is_on_stream(role).then_some(((at, role), shown)))
    })?;
    let mut gains = BTreeMap::new();
    for (norm, sums) in sums {
        for sum in sums {
            let (square, n_values) = (sum.f_double_value(&[0])?, sum.f_double_value(&[1])?);
            gains.insert(norm, (square / n_values.max(1.0)).sqrt());
        }
    }
    Ok(gains)
}
