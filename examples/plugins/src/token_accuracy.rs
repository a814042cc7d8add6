use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::Result;
use minitron_core::evaluate::scan_rows;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// `accuracy`: the share of tokens that the model finds likeliest, on held-out text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenAccuracy {}

minitron_core::plugin! {
    Evaluator for TokenAccuracy {
        tag: "token_accuracy",
        summary: "share of next tokens that are the likeliest",
        source: "an example",
    }
}

#[typetag::serde(name = "token_accuracy")]
impl Evaluator for TokenAccuracy {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let (mut n_right, mut n_rows) = (0.0, 0.0);
        scan_rows(subject, |rows| {
            let is_right_n = rows
                .student_nv
                .f_argmax(-1, false)?
                .f_eq_tensor(&rows.labels_n)?;
            n_right += is_right_n.f_sum(Kind::Double)?.f_double_value(&[])?;
            n_rows += rows.labels_n.numel() as f64;
            Ok(())
        })?;
        Ok(Measurements::from([(
            "accuracy".to_owned(),
            n_right / n_rows,
        )]))
    }
}
