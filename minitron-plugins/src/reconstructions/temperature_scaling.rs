use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::{FactorFit, StudentEditor};
use minitron_core::spec::{At, ParamKind, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One factor s of all logits, that of the least mean KL from the teacher over N tokens,
///
/// ```text
/// min 1/N · Σ KL(softmax(z) ‖ softmax(s·z'))     z, z' [N, V] of teacher and student
/// slope     1/N · Σ (E_q[z'] − E_p[z'])           p teacher's, q student's distribution
/// curvature 1/N · Σ Var_q[z']                     never below 0: one minimum
/// ```
/// by Newton's method, multiplied into gain and bias of the final norm: no more parameters, and no
/// other ranking of tokens. Where logits are capped, slope and curvature are those through the cap.
///
/// What a least-squares fit cannot know of the teacher's last states is left out of the student's
/// logits, which are too even for that; s is above 1 then. A temperature of 1/s, in the words of
/// the source, fitted to the teacher in place of labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TemperatureScaling {
    /// Tokens of calibration text that are looked at; at least one window.
    pub tokens: usize,
}

impl Default for TemperatureScaling {
    fn default() -> Self {
        TemperatureScaling { tokens: 4096 }
    }
}

minitron_core::plugin! {
    Reconstruction for TemperatureScaling {
        tag: "temperature_scaling",
        summary: "one factor of all logits, nearest to the teacher, in the final norm",
        source: "temperature scaling of arXiv 1706.04599, section 4, fitted to the teacher",
    }
}

#[typetag::serde(name = "temperature_scaling")]
impl Reconstruction for TemperatureScaling {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if self.tokens == 0 {
            return Err(Error::Recipe(
                "temperature_scaling: tokens: expected a number above 0, got 0".into(),
            ));
        }
        if editor.is_whole() {
            return Ok(());
        }
        editor.check_logit_factor()?;
        let Some(states) = editor.last_states(self.tokens)? else {
            return Ok(());
        };
        let (factor, (before, after)) = least(&mut |factor| states.at(editor, factor))?;
        editor.calibration()?.progress.note(&format!(
            "logits times {factor:.4}: KL {before:.4} -> {after:.4} on calibration text"
        ));
        if factor == 1.0 {
            return Ok(());
        }
        let (at, role) = (At::Model, Role::FINAL_NORM);
        editor.scale_gain(at, role, factor)?;
        if editor.has(at, role, ParamKind::Bias) {
            let bias_k = editor.read(at, role, ParamKind::Bias)?;
            let bias_k = bias_k.f_mul_scalar(factor)?;
            editor.replace(at, role, ParamKind::Bias, &bias_k)?;
        }
        Ok(())
    }
}

/// Passes over all logits at most.
const PASSES: usize = 12;
/// A share of KL that is worth another pass.
const WORTH: f64 = 1e-6;

/// The factor of the least KL, and KL at 1 and there.
fn least(at: &mut dyn FnMut(f64) -> Result<FactorFit>) -> Result<(f64, (f64, f64))> {
    let start = at(1.0)?;
    let (mut best, mut fit) = (1.0, start);
    for _ in 0..PASSES {
        let gained = fit.slope * fit.slope / (2.0 * fit.curvature);
        if gained.is_nan() || gained <= WORTH * fit.kl {
            break;
        }
        let wanted = best - fit.slope / fit.curvature;
        let next = wanted.clamp(best / 2.0, best * 2.0);
        let tried = at(next)?;
        match tried.kl < fit.kl {
            true => (best, fit) = (next, tried),
            // Too far: what the way there curved by says how far is less.
            false => {
                let step = next - best;
                fit.curvature = 2.0 * (tried.kl - fit.kl - fit.slope * step) / (step * step);
            }
        }
    }
    Ok((best, (start.kl, fit.kl)))
}
