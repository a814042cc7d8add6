use std::path::PathBuf;

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::data::{Tokenizer, fill};
use minitron_core::error::{Error, Result};
use minitron_core::model::{NoTap, Transformer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Kind;

use super::{parted, records, text};
use crate::losses::cross_entropy::negative_log_likelihood;

/// Accuracy of choosing by likelihood: a choice's score is its summed log-likelihood after the context (`acc`), or the
/// same divided by its length in bytes (`acc_norm`). A space stands between context and choice.
///
/// A record holds `context`, `choices`, and `gold` or `label`; or HellaSwag's `ctx`, `endings`, `label`; or ARC's
/// `question`, `choices {text, label}`, `answerKey`. A context too long for the model loses its beginning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MultipleChoice {
    /// The `.jsonl` file.
    pub path: PathBuf,
    /// Questions asked, the first ones; all where 0.
    pub questions: usize,
}

minitron_core::plugin! {
    Evaluator for MultipleChoice {
        tag: "multiple_choice",
        summary: "accuracy of choosing by likelihood",
        source: "the measure of arXiv 2407.14679, section 5 (HellaSwag, ARC, MMLU)",
    }
}

struct Question {
    context: String,
    choices: Vec<String>,
    gold: usize,
}

#[typetag::serde(name = "multiple_choice")]
impl Evaluator for MultipleChoice {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let _no_grad = tch::no_grad_guard();
        let tokenizer = subject.tokenizer.ok_or_else(|| Error::Data("multiple_choice needs a tokenizer".into()))?;
        if !subject.model.is_causal() {
            return Err(Error::Data("multiple_choice needs a causal language model, this one is an encoder".into()));
        }
        let asked = if self.questions == 0 { usize::MAX } else { self.questions };
        let records = records(&self.path)?;
        let questions = records.iter().take(asked).map(|(place, record)| question(record, place));
        let questions = questions.collect::<Result<Vec<_>>>()?;
        let (mut n_right, mut n_right_norm) = (0.0, 0.0);
        subject.progress.start("multiple choice, questions", questions.len() as u64);
        for question in &questions {
            let scores = likelihoods(subject.model, tokenizer, question)?;
            let normed = scores.iter().zip(&question.choices).map(|(score, choice)| score / choice.len().max(1) as f64);
            n_right += f64::from(best(scores.iter().copied()) == question.gold);
            n_right_norm += f64::from(best(normed) == question.gold);
            subject.progress.advance(1, "");
        }
        subject.progress.finish();
        let n = questions.len() as f64;
        Ok(Measurements::from([
            ("acc".to_owned(), n_right / n),
            ("acc_norm".to_owned(), n_right_norm / n),
            ("n_questions".to_owned(), n),
        ]))
    }
}

/// First of the largest.
fn best(scores: impl Iterator<Item = f64>) -> usize {
    let largest = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    scores.enumerate().fold((0, f64::NEG_INFINITY), largest).0
}

/// Summed log-likelihood of each choice, all in one right-padded batch: later positions do not reach earlier ones.
fn likelihoods(model: &Transformer, tokenizer: &Tokenizer, question: &Question) -> Result<Vec<f64>> {
    let max_len = model.blueprint.options.max_positions;
    let mut sequences = Vec::new();
    for choice in &question.choices {
        let (mut context, continuation) = parted(tokenizer, &question.context, choice)?;
        if context.is_empty() {
            context.extend(tokenizer.eos());
        }
        let room = max_len.saturating_sub(continuation.len());
        let tail = context.get(context.len().saturating_sub(room)..).unwrap_or_default();
        if tail.is_empty() || continuation.is_empty() {
            return Err(Error::Data(format!("the choice `{choice}` does not fit the model's {max_len} positions")));
        }
        sequences.push((tail.len(), [tail, &continuation].concat()));
    }
    let (ids_bt, _) = fill(&sequences.iter().map(|(_, ids)| ids.as_slice()).collect::<Vec<_>>(), model.device)?;
    let hidden_bte = model.hidden(&ids_bt, &mut NoTap, None)?;
    let mut scores = Vec::new();
    for (row, (n_context, ids)) in sequences.iter().enumerate() {
        let (first, len) = (*n_context as i64 - 1, (ids.len() - n_context) as i64);
        let hidden_ne = hidden_bte.f_select(0, row as i64)?.f_narrow(0, first, len)?;
        let labels_n = ids_bt.f_select(0, row as i64)?.f_narrow(0, first + 1, len)?;
        let loss_n = negative_log_likelihood(&model.logits(&hidden_ne)?, &labels_n)?;
        scores.push(-loss_n.f_sum(Kind::Double)?.f_double_value(&[])?);
    }
    Ok(scores)
}

fn question(record: &Map<String, Value>, place: &str) -> Result<Question> {
    let wrong = |what: String| Error::Data(format!("{place}: {what}"));
    let context = text(record, &["context", "ctx", "question", "goal"], place)?.to_owned();
    let raw = record.get("choices").or(record.get("endings"));
    let list = raw.and_then(|raw| raw.get("text").unwrap_or(raw).as_array());
    let choices: Option<Vec<String>> =
        list.and_then(|list| list.iter().map(|choice| choice.as_str().map(str::to_owned)).collect());
    let choices = choices.filter(|choices| !choices.is_empty());
    let choices = choices.ok_or_else(|| wrong("expected a list of strings under `choices` or `endings`".into()))?;
    let answer = ["gold", "label", "answerKey", "answer"].iter().find_map(|key| record.get(*key));
    let labels = raw.and_then(|raw| raw.get("label")).and_then(Value::as_array);
    let gold = match (answer, labels) {
        (Some(answer), Some(labels)) => labels.iter().position(|label| label == answer),
        (Some(answer), None) => {
            let index = answer.as_u64().or_else(|| answer.as_str()?.parse().ok());
            index.map(|index| index as usize).filter(|&index| index < choices.len())
        }
        (None, _) => None,
    };
    let gold = gold
        .ok_or_else(|| wrong(format!("expected the right choice's index under `gold` or `label`, got {answer:?}")))?;
    Ok(Question { context, choices, gold })
}
