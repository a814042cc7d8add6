use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::{StudentEditor, Sweep};
use minitron_core::spec::{ModelSpec, ParamKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Adds to the biases of the projections into the residual stream what the stream lacks there on
/// average: b' = b + mean over calibration tokens of R, where R [N, E] is the teacher's stream at
/// the kept channels minus the student's, after earlier reconstructions (arXiv 2312.11983, section
/// 3.3, with the teacher's stream as reference). For families with such biases.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BiasCompensation {}

minitron_core::plugin! {
    Reconstruction for BiasCompensation {
        tag: "bias_compensation",
        summary: "output biases shifted by what the teacher's residual stream holds on average",
        source: "arXiv 2312.11983 (FLAP), section 3.3",
    }
}

#[typetag::serde(name = "bias_compensation")]
impl Reconstruction for BiasCompensation {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        editor.check_writers("leave bias_compensation out")?;
        if !has_writer_biases(editor.spec()) {
            return Err(Error::Recipe(format!(
                "bias_compensation: this `{}` model has no biases on its output projections; take \
                 least_squares",
                editor.spec().architecture
            )));
        }
        editor.for_each_projection(Sweep::default(), &mut |editor, stats| {
            let projections = &stats.projections;
            for &role in projections.roles.iter().filter(|_| projections.is_writer) {
                let bias = editor.spec().find(projections.at, role, ParamKind::Bias);
                if bias.is_some() {
                    let mean_e = stats
                        .all
                        .r_sum_e
                        .f_div_scalar(stats.all.n_tokens.max(1) as f64 * stats.scale)?;
                    let bias_e = editor
                        .read(projections.at, role, ParamKind::Bias)?
                        .f_add(&mean_e)?;
                    editor.replace(projections.at, role, ParamKind::Bias, &bias_e)?;
                }
            }
            Ok(())
        })
    }
}

fn has_writer_biases(spec: &ModelSpec) -> bool {
    let mut parts = (0..spec.n_layers()).flat_map(|layer| spec.sublayers(layer));
    parts.any(|(at, part)| {
        let writer = part.mixer.ports().writer;
        writer.is_some_and(|writer| spec.find(at, writer.role, ParamKind::Bias).is_some())
    })
}
