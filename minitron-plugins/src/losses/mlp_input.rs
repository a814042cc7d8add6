use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Port, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::Distance;
use super::layer_map::Layers;

/// Mean over tokens of the `distance` between what the two models' MLPs read [B, T, E]; the
/// student's is lifted to the teacher's width by a learned linear map.
///
/// The paper found no gain in it beside `hidden_state` (section 3).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MlpInput {
    /// `last_but_two`, `last`, `uniform`, or pairs teacher:student counted from 0 such as `29:13
    /// 31:15`, between spaces or +.
    #[schemars(with = "String")]
    pub layers: Layers,
    /// `cosine` (1 − cos) or `mse` (mean over channels).
    pub distance: Distance,
}

minitron_core::plugin! {
    StateLoss for MlpInput {
        tag: "mlp_input",
        summary: "distance between what the MLPs of two layers read",
        source: "arXiv 2407.14679, section 3 (L_is)",
    }
}

#[typetag::serde(name = "mlp_input")]
impl StateLoss for MlpInput {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        self.layers.pairs("mlp_input", models, |model, layer| {
            let part = model.part_showing(layer, Port::NEURONS);
            let site = part.map(|at| Site::Inside {
                at,
                port: Port::INPUT,
            });
            site.ok_or_else(|| {
                Error::Recipe(format!(
                    "mlp_input: layer {layer} has no MLP; name layers that have one"
                ))
            })
        })
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        self.distance.between("mlp_input", student, teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::assert_is_mean_of;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        for distance in [Distance::Cosine, Distance::Mse] {
            let loss = MlpInput {
                distance,
                ..MlpInput::default()
            };
            assert_is_mean_of(distance, &loss);
        }
    }
}
