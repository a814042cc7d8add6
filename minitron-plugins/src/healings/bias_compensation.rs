use minitron_core::contract::Healing;
use minitron_core::error::{Error, Result};
use minitron_core::heal::{Aim, Patient};
use minitron_core::spec::{ModelSpec, Slot};
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
        patient.check_writers("leave bias_compensation out")?;
        if !has_writer_biases(patient.spec()) {
            return Err(Error::Recipe(format!(
                "bias_compensation: this `{}` model has no biases on its output projections; take least_squares",
                patient.spec().architecture
            )));
        }
        patient.sweep(Aim::Teacher, &mut |patient, joint| {
            let place = &joint.place;
            for &role in place.roles.iter().filter(|_| place.is_writer) {
                if patient.spec().find(place.at, role, Slot::Bias).is_some() {
                    let mean_e = joint.r_sum_e.f_div_scalar(joint.n_tokens.max(1) as f64 * joint.scale)?;
                    let bias_e = patient.read(place.at, role, Slot::Bias)?.f_add(&mean_e)?;
                    patient.replace(place.at, role, Slot::Bias, &bias_e)?;
                }
            }
            Ok(())
        })
    }
}

fn has_writer_biases(spec: &ModelSpec) -> bool {
    let mut parts = (0..spec.n_layers()).flat_map(|layer| spec.sublayers(layer));
    parts.any(|(at, part)| spec.find(at, part.mixer.ports().writer, Slot::Bias).is_some())
}
