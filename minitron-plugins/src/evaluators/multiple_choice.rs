use std::path::PathBuf;

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::Result;
use minitron_core::evaluate::{Likelihood, likelihoods};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::questions::{Question, QuestionForm, question};
use super::skipped::Skipped;
use super::{insert_mean, likely, records};

/// Accuracy of choosing by likelihood: a choice's score is its summed log-likelihood after the
/// context (`acc`), or the same divided by its length (`acc_norm`); the first of the best is
/// chosen. `acc_stderr` and `acc_norm_stderr` are the standard errors of the means. A space stands
/// between context and choice.
///
/// A record holds `context`, `choices`, and `gold` or `label`, or the fields of HellaSwag, ARC,
/// PIQA, OpenBookQA, MMLU or WinoGrande as they are published. A context too long for the model
/// loses its beginning.
///
/// Tokens, prompts and scores are those of the evaluation harness (`lm-eval`), so `acc` is its
/// number. Its `acc_norm` divides by characters: `length = "characters"` is that, the default of
/// bytes is its `acc_bytes`; they differ only in texts beyond ASCII. In a blank (WinoGrande) all
/// choices are scored by one text, so `acc_norm` is `acc`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MultipleChoice {
    /// The file of records: JSON lines, JSON or Parquet.
    pub path: PathBuf,
    /// Questions asked, the first ones; all where 0.
    pub questions: usize,
    /// How a question is put.
    pub form: QuestionForm,
    /// What `acc_norm` divides by.
    pub length: Length,
    /// Whether a question that cannot be scored is an error; else it is skipped, and `n_skipped`
    /// counts it.
    pub strict: bool,
}

/// Length of a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// In UTF-8.
    #[default]
    Bytes,
    /// Unicode scalar values.
    Characters,
}

impl Length {
    fn of(self, choice: &str) -> usize {
        match self {
            Length::Bytes => choice.len(),
            Length::Characters => choice.chars().count(),
        }
    }
}

minitron_core::plugin! {
    Evaluator for MultipleChoice {
        tag: "multiple_choice",
        summary: "accuracy of choosing by likelihood",
        source: "the measure of arXiv 2407.14679, section 5 (HellaSwag, ARC, MMLU), as lm-eval \
                 takes it",
    }
}

#[typetag::serde(name = "multiple_choice")]
impl Evaluator for MultipleChoice {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let tokenizer = likely::tokenizer(subject, "multiple_choice")?;
        let asked = if self.questions == 0 {
            usize::MAX
        } else {
            self.questions
        };
        let records = records(&self.path)?;
        let mut skipped = Skipped::new(self.strict);
        let mut questions = Vec::new();
        for (place, record) in records.iter().take(asked) {
            let question = skipped.take(question(record, place, self.form))?;
            questions.extend(question.map(|question| (place, question)));
        }
        let mut pairs = Vec::new();
        for (place, question) in &questions {
            for pair in &question.pairs {
                pairs.push(((*place).clone(), pair.clone()));
            }
        }
        let mut made = likely::continuations(subject, tokenizer, &pairs)?.into_iter();
        let (mut scored, mut continuations) = (Vec::new(), Vec::new());
        for (_, question) in questions {
            // All of a question's are taken, whichever fails.
            let of_question: Vec<_> = made.by_ref().take(question.pairs.len()).collect();
            let of_question = of_question.into_iter().collect::<Result<Vec<_>>>();
            if let Some(of_question) = skipped.take(of_question)? {
                continuations.extend(of_question);
                scored.push(question);
            }
        }
        skipped.check(scored.len(), &self.path)?;
        let found = likelihoods(subject, &continuations)?;
        let (mut right, mut right_norm) = (Vec::new(), Vec::new());
        let mut rest = found.as_slice();
        for question in &scored {
            let (scores, later) = rest
                .split_at_checked(question.pairs.len())
                .unwrap_or((rest, &[]));
            let chosen = best(scores.iter().map(|score| score.log));
            let chosen_norm = best(self.normed(question, scores));
            right.push(f64::from(chosen == question.gold));
            right_norm.push(f64::from(chosen_norm == question.gold));
            rest = later;
        }
        let mut measured = Measurements::from([("n_questions".to_owned(), scored.len() as f64)]);
        insert_mean(&mut measured, "acc", &right);
        insert_mean(&mut measured, "acc_norm", &right_norm);
        skipped.report(subject, &self.path, &mut measured);
        Ok(measured)
    }
}

impl MultipleChoice {
    fn normed<'a>(
        &'a self,
        question: &'a Question,
        scores: &'a [Likelihood],
    ) -> impl Iterator<Item = f64> + 'a {
        scores
            .iter()
            .zip(&question.choices)
            .map(|(score, choice)| score.log / self.length.of(choice).max(1) as f64)
    }
}

/// First of the largest.
fn best(scores: impl Iterator<Item = f64>) -> usize {
    let (mut best, mut largest) = (0, f64::NEG_INFINITY);
    for (idx, score) in scores.enumerate() {
        if score > largest {
            (best, largest) = (idx, score);
        }
    }
    best
}
