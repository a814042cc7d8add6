use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// RMS norms over fewer channels divide by another number: with z = x / rms(x) [N, width] the
/// teacher's normalised input of a norm, of which the student keeps the positions S,
///
/// ```text
/// gain := gain · c    c² = mean over tokens and S of z² / mean over tokens and all positions of z²
/// ```
/// where the divisor is 1 but for tokens that hold nothing at all: c is rms over S / rms over all,
/// on average. It holds for norms on the residual stream, on what a part adds (Gemma), over whole
/// queries and keys (OLMo 2), and over those of a head that lost channels (Qwen3). Layer norms,
/// whose mean changes too, stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NormRescale {}

minitron_core::plugin! {
    Reconstruction for NormRescale {
        tag: "norm_rescale",
        summary: "gains of RMS norms corrected for the channels or heads that they lost",
        source: "the gains of arXiv 2401.15024 (SliceGPT), for channels that are cut rather than \
                 turned",
    }
}

#[typetag::serde(name = "norm_rescale")]
impl Reconstruction for NormRescale {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if editor.is_whole() {
            return Ok(());
        }
        let sums = editor.sum_over_norms(&mut |at, role, z_nc| {
            let kept = editor.kept_of_norm(at, role)?;
            if kept.len() as i64 == z_nc.size2()?.1 || !is_rms(editor, at, role) {
                return Ok(None);
            }
            Ok(Some(((at, role), vec![squares(z_nc, &kept)?])))
        })?;
        for ((at, role), sums) in sums {
            let sums = sums.first().map(Vec::<f64>::try_from).transpose()?;
            let Some([kept, n_kept, all, n_all]) = sums.as_deref() else {
                continue;
            };
            let factor = ((kept / n_kept.max(1.0)) / (all / n_all.max(1.0))).sqrt();
            // Where nothing passes, before or after, there is nothing to correct.
            if factor.is_finite() && factor > 0.0 {
                // What was taken for granted is known now.
                editor.scale_gain(at, role, factor / editor.assumed(at, role))?;
            }
        }
        Ok(())
    }
}

/// Sum and number of z² at the positions that stay, and at all.
fn squares(z_nc: &Tensor, kept: &[usize]) -> Result<Tensor> {
    let (n_tokens, width) = z_nc.size2()?;
    let mut is_kept = vec![0f32; width.max(0) as usize];
    for &position in kept {
        is_kept
            .get_mut(position)
            .into_iter()
            .for_each(|value| *value = 1.0);
    }
    let is_kept_c = Tensor::f_from_slice(&is_kept)?.f_to_device(z_nc.device())?;
    let square_nc = z_nc.f_square()?;
    let of_kept = f64::try_from(square_nc.f_mul(&is_kept_c)?.f_sum(Kind::Double)?)?;
    let of_all = f64::try_from(square_nc.f_sum(Kind::Double)?)?;
    let n_kept = n_tokens as f64 * kept.len() as f64;
    Ok(Tensor::f_from_slice(&[
        of_kept,
        n_kept,
        of_all,
        square_nc.numel() as f64,
    ])?)
}

fn is_rms(editor: &StudentEditor, at: At, role: Role) -> bool {
    let spec = editor.spec();
    let param = spec.find(at, role, minitron_core::spec::ParamKind::Weight);
    param
        .and_then(|param| spec.norm_of(param))
        .is_some_and(|norm| norm.kind.is_rms())
}
