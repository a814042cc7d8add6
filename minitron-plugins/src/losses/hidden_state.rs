use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::Distance;
use super::layer_map::Layers;

/// Mean over tokens of the `distance` between the two models' states after a layer, as the next
/// norm gives them out [B, T, E]; the student's are lifted to the teacher's width by a learned
/// linear map.
///
/// The paper's best pairing is the last-but-two layer of each, by cosine (section 3).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HiddenState {
    /// `last_but_two`, `last`, `uniform`, or pairs teacher:student counted from 0 such as `29:13
    /// 31:15`, between spaces or +.
    #[schemars(with = "String")]
    pub layers: Layers,
    /// `cosine` (1 − cos) or `mse` (mean over channels).
    pub distance: Distance,
}

minitron_core::plugin! {
    StateLoss for HiddenState {
        tag: "hidden_state",
        summary: "distance between the states after a layer",
        source: "arXiv 2407.14679, section 3 (L_is)",
    }
}

#[typetag::serde(name = "hidden_state")]
impl StateLoss for HiddenState {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        self.layers.pairs("hidden_state", models, |model, layer| {
            Ok(model.normed_output(layer))
        })
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        self.distance.between("hidden_state", student, teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::assert_is_mean_of;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        for distance in [Distance::Cosine, Distance::Mse] {
            let loss = HiddenState {
                distance,
                ..HiddenState::default()
            };
            assert_is_mean_of(distance, &loss);
        }
    }
}
