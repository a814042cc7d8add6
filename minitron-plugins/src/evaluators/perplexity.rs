use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::Result;
use minitron_core::evaluate::scan_rows;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::losses::cross_entropy::negative_log_likelihood;
use crate::losses::divergences;

/// `loss`: mean negative log-likelihood in nats over every predicted token; `perplexity`: its
/// exponential; with a teacher, `kl_to_teacher`: mean KL(teacher ‖ model) in nats over the same
/// positions, temperature 1, and over the token ids that both have, where one table has rows
/// beyond.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Perplexity {}

minitron_core::plugin! {
    Evaluator for Perplexity {
        tag: "perplexity",
        summary: "loss, perplexity, and KL to the teacher on held-out text",
        source: "arXiv 2407.14679, section 5",
    }
}

#[typetag::serde(name = "perplexity")]
impl Evaluator for Perplexity {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let (mut n_rows, mut loss, mut kl) = (0.0, 0.0, None);
        scan_rows(subject, |rows| {
            let loss_n = negative_log_likelihood(&rows.student_nv, &rows.labels_n)?;
            loss += loss_n.f_sum(Kind::Double)?.f_double_value(&[])?;
            if let Some((student_nv, teacher_nv)) = rows.compared()? {
                let kl_n = divergences::forward(&student_nv, &teacher_nv, 1.0)?;
                *kl.get_or_insert(0.0) += kl_n.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            n_rows += rows.labels_n.numel() as f64;
            Ok(())
        })?;
        let loss = loss / n_rows;
        let mut measured = Measurements::from([
            ("loss".to_owned(), loss),
            ("perplexity".to_owned(), loss.exp()),
            ("n_tokens".to_owned(), n_rows),
        ]);
        if let Some(kl) = kl {
            measured.insert("kl_to_teacher".to_owned(), kl / n_rows);
        }
        Ok(measured)
    }
}
