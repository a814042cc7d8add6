use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::Result;
use minitron_core::model::Site;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The mean over tokens and channels of log(cosh(student − teacher)) of the last hidden state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogCosh {}

minitron_core::plugin! {
    StateLoss for LogCosh {
        tag: "log_cosh",
        summary: "log-cosh distance of last hidden states",
        source: "an example",
    }
}

#[typetag::serde(name = "log_cosh")]
impl StateLoss for LogCosh {
    fn pairs(&self, _models: &ModelPair) -> Result<Vec<SitePair>> {
        Ok(vec![SitePair::new(Site::Last, Site::Last)])
    }

    fn projects(&self) -> bool {
        // A learned map where the student is narrower.
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        // What the teacher says is given: no gradient goes back to it.
        let d_nc = student.rows()?.f_sub(&teacher.rows()?.f_detach()?)?;
        // log cosh d = |d| + log(1 + e^(−2|d|)) − log 2, which does not overflow.
        let size_nc = d_nc.f_abs()?;
        let tail_nc = size_nc.f_mul_scalar(-2.0)?.f_exp()?.f_log1p()?;
        let value = size_nc
            .f_add(&tail_nc)?
            .f_sub_scalar(std::f64::consts::LN_2)?;
        Ok(value.f_mean(value.f_kind()?)?)
    }
}
