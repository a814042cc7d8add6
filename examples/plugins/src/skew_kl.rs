use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// KL(teacher ‖ mixture) of a mixture of `share` parts teacher and 1 − `share` parts student, per
/// row, in nats: a skewed divergence, which stays small where the student gives almost nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SkewKl {
    /// The teacher's share of the mixture, from 0, which is the plain divergence, to below 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
}

impl Default for SkewKl {
    fn default() -> Self {
        SkewKl { share: 0.1 }
    }
}

minitron_core::plugin! {
    LogitLoss for SkewKl {
        tag: "skew_kl",
        summary: "KL divergence from the teacher to a mixture of both",
        source: "arXiv 2402.03898, section 3.1",
    }
}

#[typetag::serde(name = "skew_kl")]
impl LogitLoss for SkewKl {
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Distribution {
            n_tokens: TeacherNeed::ALL,
        }
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        let teacher_nv = teacher_nv
            .ok_or_else(|| Error::Internal("no teacher".into()))?
            .f_detach()?;
        if !(0.0..1.0).contains(&self.share) {
            return Err(Error::Recipe(format!(
                "share: expected a share from 0 to below 1, got {}",
                self.share
            )));
        }
        let kind = student_nv.f_kind()?;
        let (log_p, log_q) = (
            teacher_nv.f_log_softmax(-1, kind)?,
            student_nv.f_log_softmax(-1, kind)?,
        );
        let log_mixture = match self.share {
            0.0 => log_q,
            share => log_p
                .f_add_scalar(share.ln())?
                .f_logaddexp(&log_q.f_add_scalar((1.0 - share).ln())?)?,
        };
        let terms = log_p.f_exp()?.f_mul(&log_p.f_sub(&log_mixture)?)?;
        // One number per row: the engine sums and averages.
        Ok(terms.f_sum_dim_intlist([-1i64].as_slice(), false, kind)?)
    }
}
