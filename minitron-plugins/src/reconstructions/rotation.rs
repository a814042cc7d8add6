use std::collections::BTreeMap;

use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, HIDDEN, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

mod basis;

use basis::{
    completed, most_needed, needed, principal_components, spread, with_mean, without_mean,
};

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
/// With `basis=readers` those stay from which what the readers make of z can be told best. With
///
/// ```text
/// G = Σ over norms of Σ diag(g)·WᵀW·diag(g) / tr(· C)      W the projections behind a norm
/// ```
/// and u the leading eigenvectors of C^½·G·C^½, the span of G·C^½·u: the code of d' numbers that
/// least squares reads W·z from with the least relative error, all norms counting alike.
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
/// first: the same student in f32, but quantised it errs less. Tied embeddings fit a gain to every
/// channel of the basis that was chosen, so theirs is another one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// What decides which components stay.
    pub basis: Basis,
    /// Whether the kept components are turned among themselves, so that their energy is even.
    pub spread: bool,
    /// Whether tied embeddings come apart.
    pub untie: bool,
}

/// What decides which components of the stream stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Their share of the stream's variance.
    #[default]
    Variance,
    /// What the projections that read the stream make of them.
    Readers,
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
        let basis_ee = self.basis_of(editor, &covariance(editor)?, n_kept as i64)?;
        let gains = gains(editor, &basis_ee.f_narrow(1, 0, n_kept as i64)?)?;
        editor.rotate_residual(&basis_ee, self.untie)?;
        for ((at, role), gain) in gains {
            editor.scale_gain(at, role, gain)?;
        }
        Ok(())
    }
}

impl Rotation {
    /// Orthonormal columns, the kept ones first.
    fn basis_of(
        &self,
        editor: &StudentEditor,
        covariance_ee: &Tensor,
        n_kept: i64,
    ) -> Result<Tensor> {
        let is_centred = editor.is_centred();
        let covariance_ee = match is_centred {
            true => without_mean(covariance_ee)?,
            false => covariance_ee.shallow_clone(),
        };
        let n_free = n_kept - i64::from(is_centred);
        let mut basis_ee = match self.basis {
            Basis::Variance => principal_components(&covariance_ee, is_centred)?,
            Basis::Readers => {
                let needed_ee = needed(editor, &covariance_ee)?;
                completed(
                    &most_needed(&covariance_ee, &needed_ee, n_free)?,
                    is_centred,
                )?
            }
        };
        if self.spread {
            basis_ee = spread(&basis_ee, n_free, editor.seed())?;
        }
        match is_centred {
            true => with_mean(&basis_ee, n_kept),
            false => Ok(basis_ee),
        }
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

/// c of every norm; the stream is not turned yet.
fn gains(editor: &StudentEditor, kept_ek: &Tensor) -> Result<BTreeMap<(At, Role), f64>> {
    let kept_ek = kept_ek.f_to_kind(Kind::Float)?;
    let sums = editor.sum_over_norms(&mut |at, role, z_ne| {
        if !is_on_stream(role) {
            return Ok(None);
        }
        let kept_ek = kept_ek.f_to_device(z_ne.device())?;
        let kept = z_ne.f_matmul(&kept_ek)?.f_square()?;
        let numbers = [
            f64::try_from(kept.f_sum(Kind::Double)?)?,
            kept.numel() as f64,
        ];
        let shown = vec![Tensor::f_from_slice(&numbers)?];
        Ok(Some(((at, role), shown)))
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
