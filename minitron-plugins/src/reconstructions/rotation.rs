use std::collections::BTreeMap;

use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::random::SplitMix;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, HIDDEN, ParamKind, Role};
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
/// d'), with z the turned input of that very norm. For RMS norms before each part. Tied embeddings
/// come apart. It comes first among reconstructions, and does nothing where all channels are kept.
///
/// The gains being one number each, any orthogonal map among the d' components is free. With
/// `spread`, a random one (the run's seed) evens out their energy, which otherwise lies in the
/// first: the same student in f32, but quantised it errs less.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// Whether the kept components are turned among themselves, so that their energy is even.
    pub spread: bool,
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
        let mut basis_ee = principal_components(&covariance(editor)?)?;
        if self.spread {
            basis_ee = spread(&basis_ee, n_kept as i64, editor.seed())?;
        }
        editor.rotate_residual(&basis_ee)?;
        for ((at, role), gain) in gains(editor, n_kept as i64)? {
            let gain_e = Tensor::f_full([n_kept as i64], gain, (Kind::Double, Device::Cpu))?;
            editor.replace(at, role, ParamKind::Weight, &gain_e)?;
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

/// Eigenvectors as columns, by descending eigenvalue.
fn principal_components(covariance_ee: &Tensor) -> Result<Tensor> {
    let (_, ascending_ee) = covariance_ee.f_linalg_eigh("L")?;
    Ok(ascending_ee.f_flip([1])?)
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
