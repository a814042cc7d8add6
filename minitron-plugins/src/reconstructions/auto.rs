use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{DEPTH, HIDDEN};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layer_merge::LayerMerge;
use super::least_squares::LeastSquares;
use super::norm_rescale::NormRescale;
use super::rotation::{Basis, Rotation};
use super::temperature_scaling::TemperatureScaling;

/// What suits the family and the plan, in this order:
///
/// 1. where channels are cut, `rotation` of a stream that turns, by what its readers need and with
///    even energy, and `norm_rescale` of another;
/// 2. where layers are dropped, `layer_merge` into those before them;
/// 3. `least_squares`, of readers alone where a family norms what its parts add;
/// 4. `temperature_scaling` of models whose final norm stands right before their logits.
///
/// The student says which of them it got.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auto {}

minitron_core::plugin! {
    Reconstruction for Auto {
        tag: "auto",
        summary: "what suits the family and the plan",
        source: "measured here, docs/results/pruning.md",
    }
}

#[typetag::serde(name = "auto")]
impl Reconstruction for Auto {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if editor.is_whole() {
            return Ok(());
        }
        if editor.kept(HIDDEN).len() < editor.teacher_spec().size(HIDDEN) {
            match editor.check_rebase() {
                Ok(()) => editor.treat(&Rotation {
                    basis: Basis::Readers,
                    spread: true,
                    ..Rotation::default()
                })?,
                Err(_) => editor.treat(&NormRescale::default())?,
            }
        }
        if editor.kept(DEPTH).len() < editor.teacher_spec().n_layers() {
            editor.treat(&LayerMerge {})?;
        }
        editor.treat(&LeastSquares {
            writers: editor.check_writers("").is_ok(),
            ..LeastSquares::default()
        })?;
        match editor.check_logit_factor() {
            Ok(()) => editor.treat(&TemperatureScaling::default()),
            Err(_) => Ok(()),
        }
    }
}
