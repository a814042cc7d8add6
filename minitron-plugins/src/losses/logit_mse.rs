use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::mean_square;
use super::divergences::{teacher, widened};

/// (1/V)·Σᵥ (s − t)²: squared difference of the raw logits, its mean over the vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogitMse {}

minitron_core::plugin! {
    LogitLoss for LogitMse {
        tag: "logit_mse",
        summary: "mean squared difference of the logits",
        source: "arXiv 2407.14679, section 3 (MSE)",
    }
}

#[typetag::serde(name = "logit_mse")]
impl LogitLoss for LogitMse {
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Logits
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        mean_square(
            &widened(student_nv)?,
            &widened(&teacher("logit_mse", teacher_nv)?.f_detach()?)?,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::Logits;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        let expected_nv = (&logits.student_nv - &logits.teacher_nv) * (2.0 / 7.0);
        logits.assert_gradient(&LogitMse {}, &expected_nv);
    }
}
