use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::one_minus_cos;
use super::divergences::{teacher, widened};

/// 1 − cos(s, t) = 1 − Σᵥ s·t / (|s|·|t|) of the raw logits over the vocabulary, from 0 to 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogitCosine {}

minitron_core::plugin! {
    LogitLoss for LogitCosine {
        tag: "logit_cosine",
        summary: "one minus the cosine of the logits",
        source: "arXiv 2407.14679, section 3 (cosine)",
    }
}

#[typetag::serde(name = "logit_cosine")]
impl LogitLoss for LogitCosine {
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Logits
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        one_minus_cos(
            &widened(student_nv)?,
            &widened(&teacher("logit_cosine", teacher_nv)?.f_detach()?)?,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::{Logits, of_one_minus_cos};

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        let expected_nv = of_one_minus_cos(&logits.student_nv, &logits.teacher_nv);
        logits.assert_gradient(&LogitCosine {}, &expected_nv);
    }
}
