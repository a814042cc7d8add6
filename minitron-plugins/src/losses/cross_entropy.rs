use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Reduction, Tensor};

use super::divergences::{likelihood_and_gradient, widened};

/// −log softmax(student)\[label\], in nats: the language-model loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrossEntropy {}

minitron_core::plugin! {
    LogitLoss for CrossEntropy {
        tag: "cross_entropy",
        summary: "negative log-likelihood of the next token",
        source: "arXiv 2407.14679, section 3 (L_CLM)",
    }
}

#[typetag::serde(name = "cross_entropy")]
impl LogitLoss for CrossEntropy {
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Nothing
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        _teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
    ) -> Result<Tensor> {
        negative_log_likelihood(student_nv, labels_n)
    }

    fn rows_and_gradient(
        &self,
        student_nv: &mut Tensor,
        _teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
        factor: f64,
    ) -> Result<Option<Tensor>> {
        likelihood_and_gradient(student_nv, labels_n, factor).map(Some)
    }
}

/// [N] from logits [N, V] and labels [N], in f32 at least.
pub(crate) fn negative_log_likelihood(logits_nv: &Tensor, labels_n: &Tensor) -> Result<Tensor> {
    Ok(widened(logits_nv)?.f_cross_entropy_loss(
        labels_n,
        None::<Tensor>,
        Reduction::None,
        -100,
        0.0,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::Logits;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let logits = Logits::new();
        let (q_nv, _) = logits.softmaxes(1.0);
        // q − 1 at the label.
        let expected_nv = q_nv - logits.labels_n.one_hot(7);
        logits.assert_gradient(&CrossEntropy {}, &expected_nv);
    }
}
