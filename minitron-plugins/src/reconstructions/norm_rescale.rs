use std::collections::BTreeMap;

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

/// Squares of a norm's input at the positions that stay, and at all.
#[derive(Default)]
struct Shares {
    kept: Mean,
    all: Mean,
}

#[derive(Default)]
struct Mean {
    sum: f64,
    n_values: usize,
}

impl Mean {
    fn add(&mut self, values: &Tensor, n_values: usize) -> Result<()> {
        self.sum += values.f_sum(Kind::Double)?.f_double_value(&[])?;
        self.n_values += n_values;
        Ok(())
    }

    fn average(&self) -> f64 {
        self.sum / self.n_values.max(1) as f64
    }
}

#[typetag::serde(name = "norm_rescale")]
impl Reconstruction for NormRescale {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if editor.is_whole() {
            return Ok(());
        }
        let mut sums: BTreeMap<(At, Role), Shares> = BTreeMap::new();
        editor.teachers_norms(&mut |at, role, z_nc| {
            let kept = editor.kept_of_norm(at, role)?;
            if kept.len() as i64 == z_nc.size2()?.1 || !is_rms(editor, at, role) {
                return Ok(());
            }
            let mut is_kept = vec![0f32; z_nc.size2()?.1.max(0) as usize];
            for &position in &kept {
                is_kept
                    .get_mut(position)
                    .into_iter()
                    .for_each(|value| *value = 1.0);
            }
            let is_kept_c = Tensor::f_from_slice(&is_kept)?.f_to_device(z_nc.device())?;
            let square_nc = z_nc.f_square()?;
            let n_tokens = z_nc.size2()?.0.max(0) as usize;
            let shares = sums.entry((at, role)).or_default();
            shares.all.add(&square_nc, square_nc.numel())?;
            shares
                .kept
                .add(&square_nc.f_mul(&is_kept_c)?, n_tokens * kept.len())
        })?;
        for ((at, role), Shares { kept, all }) in sums {
            let factor = (kept.average() / all.average()).sqrt();
            // Where nothing passes, before or after, there is nothing to correct.
            if factor.is_finite() && factor > 0.0 {
                // What was taken for granted is known now.
                editor.scale_gain(at, role, factor / editor.assumed(at, role))?;
            }
        }
        Ok(())
    }
}

fn is_rms(editor: &StudentEditor, at: At, role: Role) -> bool {
    let spec = editor.spec();
    let param = spec.find(at, role, minitron_core::spec::ParamKind::Weight);
    param
        .and_then(|param| spec.norm_of(param))
        .is_some_and(|norm| norm.kind.is_rms())
}
