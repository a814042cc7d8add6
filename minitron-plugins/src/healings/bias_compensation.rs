use minitron_core::blueprint::{Role, Slot};
use minitron_core::contract::Healing;
use minitron_core::error::{Error, Result};
use minitron_core::heal::{Aim, Patient, Place};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Adds to the biases of the projections into the residual stream what the stream lacks there on average:
/// b' = b + mean over calibration tokens of R, where R [N, E] is the teacher's stream at the kept channels minus the
/// student's, after earlier healings (arXiv 2312.11983, section 3.3, with the teacher's stream as reference). For families
/// with such biases.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BiasCompensation {}

minitron_core::plugin! {
    Healing for BiasCompensation {
        tag: "bias_compensation",
        summary: "output biases shifted by what the teacher's residual stream holds on average",
        source: "arXiv 2312.11983 (FLAP), section 3.3",
    }
}

#[typetag::serde(name = "bias_compensation")]
impl Healing for BiasCompensation {
    fn heal(&self, patient: &mut Patient) -> Result<()> {
        let blueprint = patient.blueprint();
        let has_bias = |role: Role| blueprint.find(role, Slot::Bias, Some(0)).is_some();
        if ![Role::AttentionOutput, Role::Down].into_iter().any(has_bias) {
            return Err(Error::Recipe(format!(
                "bias_compensation: this `{}` model has no biases on its output projections; take least_squares",
                blueprint.architecture
            )));
        }
        patient.sweep(Aim::Teacher, &mut |patient, joint| {
            let (role, layer) = match joint.place {
                Place::AttentionWriter => (Role::AttentionOutput, joint.layer),
                Place::MlpWriter => (Role::Down, joint.layer),
                _ => return Ok(()),
            };
            if patient.blueprint().find(role, Slot::Bias, layer).is_none() {
                return Ok(());
            }
            let mean_e = joint.r_sum_e.f_div_scalar(joint.n_tokens.max(1) as f64)?;
            patient.replace(role, Slot::Bias, layer, &patient.read(role, Slot::Bias, layer)?.f_add(&mean_e)?)
        })
    }
}
