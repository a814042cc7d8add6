use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::Distance;

/// Mean over tokens of the `distance` between the two models' embeddings, read after the norm as
/// the first layer's attention reads them [B, T, E]; the student's are lifted to the teacher's
/// width by a learned linear map.
///
/// The paper adds it to `hidden_state` where depth falls a lot (section 3).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Embedding {
    /// `cosine` (1 − cos) or `mse` (mean over channels).
    pub distance: Distance,
}

minitron_core::plugin! {
    StateLoss for Embedding {
        tag: "embedding",
        summary: "distance between the embeddings after the first norm",
        source: "arXiv 2407.14679, section 3 (L_is)",
    }
}

#[typetag::serde(name = "embedding")]
impl StateLoss for Embedding {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        let (student, teacher) = (models.student, models.teacher);
        Ok(vec![SitePair::new(
            student.first_input(),
            teacher.first_input(),
        )])
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        self.distance.between("embedding", student, teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::assert_is_mean_of;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        for distance in [Distance::Cosine, Distance::Mse] {
            let loss = Embedding { distance };
            assert_is_mean_of(distance, &loss);
        }
    }
}
