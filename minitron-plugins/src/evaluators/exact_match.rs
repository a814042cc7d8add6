use std::collections::BTreeMap;
use std::path::PathBuf;

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Result};
use minitron_core::evaluate::{Sampling, generate};
use minitron_core::windows::Tokenize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::skipped::Skipped;
use super::{records, text};

/// Share of prompts whose greedy continuation is the expected one, token for token (`exact_match`).
///
/// A record holds `prompt_ids` and `completion_ids`, or `prompt` and `completion`, or `context` and
/// `target` (a word that follows after a space). A closing end-of-sequence token is part of a
/// completion: the model has to stop there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactMatch {
    /// The file of records: JSON lines, JSON or Parquet.
    pub path: PathBuf,
    /// Whether a record that cannot be scored is an error; else it is skipped, and `n_skipped`
    /// counts it.
    pub strict: bool,
}

minitron_core::plugin! {
    Evaluator for ExactMatch {
        tag: "exact_match",
        summary: "share of prompts continued exactly as expected",
        source: "greedy decoding against a reference; no paper",
    }
}

/// A prompt and what must follow it.
struct Exercise {
    prompt: Vec<u32>,
    expected: Vec<u32>,
}

impl Exercise {
    /// The last token is generated, and not read.
    fn checked(self, place: &str, max_positions: usize) -> Result<Self> {
        let (n_prompt, n_expected) = (self.prompt.len(), self.expected.len());
        if n_prompt == 0 || n_expected == 0 {
            return Err(Error::Data(format!(
                "{place}: expected at least one token in the prompt and in what follows"
            )));
        }
        if n_prompt + n_expected > max_positions + 1 {
            return Err(Error::Data(format!(
                "{place}: expected at most {max_positions} tokens, which the model has positions \
                 for, got a prompt of {n_prompt} and {n_expected} after it"
            )));
        }
        Ok(self)
    }
}

#[typetag::serde(name = "exact_match")]
impl Evaluator for ExactMatch {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let tokenizer = subject
            .tokenizer
            .ok_or_else(|| Error::Data("exact_match needs the model's tokenizer".into()))?;
        let mut by_shape: BTreeMap<(usize, usize), Vec<Exercise>> = BTreeMap::new();
        let mut n_questions = 0u64;
        let mut skipped = Skipped::new(self.strict);
        let max_positions = subject.model.spec.options.max_positions;
        for (place, record) in records(&self.path)? {
            let made = question(&record, &place, tokenizer)
                .and_then(|made| made.checked(&place, max_positions));
            let Some(question) = skipped.take(made)? else {
                continue;
            };
            by_shape
                .entry((question.prompt.len(), question.expected.len()))
                .or_default()
                .push(question);
            n_questions += 1;
        }
        skipped.check(n_questions as usize, &self.path)?;
        let mut n_right = 0u64;
        subject
            .progress
            .start("exact match, questions", n_questions);
        for ((_, n_expected), questions) in by_shape {
            for batch in questions.chunks(subject.batch_size.clamp(1, 1 << 16) * 8) {
                let prompts: Vec<Vec<u32>> = batch
                    .iter()
                    .map(|question| question.prompt.clone())
                    .collect();
                // No end token: it is compared like any other.
                let sampling = Sampling {
                    max_new_tokens: n_expected,
                    ..Sampling::default()
                };
                let found = generate(subject.model, &prompts, &[], &sampling)?;
                n_right += batch
                    .iter()
                    .zip(&found)
                    .filter(|(question, found)| question.expected == **found)
                    .count() as u64;
                subject.progress.advance(batch.len() as u64, "");
            }
        }
        subject.progress.finish();
        let mut measured = Measurements::from([
            (
                "exact_match".to_owned(),
                n_right as f64 / n_questions as f64,
            ),
            ("n_questions".to_owned(), n_questions as f64),
        ]);
        skipped.report(subject, &self.path, &mut measured);
        Ok(measured)
    }
}

fn question(
    record: &Map<String, Value>,
    place: &str,
    tokenizer: &dyn Tokenize,
) -> Result<Exercise> {
    let question = if record.contains_key("prompt_ids") && record.contains_key("completion_ids") {
        Exercise {
            prompt: ids(record, "prompt_ids", place, tokenizer)?,
            expected: ids(record, "completion_ids", place, tokenizer)?,
        }
    } else if record.contains_key("target") {
        let context = text(record, &["context", "prompt"], place)?;
        let (prompt, expected) = parted(tokenizer, context, text(record, &["target"], place)?)?;
        Exercise { prompt, expected }
    } else {
        Exercise {
            prompt: tokenizer.encode(text(record, &["prompt"], place)?)?,
            expected: tokenizer.encode(text(record, &["completion"], place)?)?,
        }
    };
    Ok(question)
}

/// Ids of a context and of what follows it after a space. Both are tokenised together, since many
/// tokenizers mark the beginning of a text with a space of their own, and parted where they leave
/// the context's own ids.
fn parted(
    tokenizer: &dyn Tokenize,
    context: &str,
    continuation: &str,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let alone = tokenizer.encode(context)?;
    let mut whole = tokenizer.encode(&format!("{context} {continuation}"))?;
    let n_common = alone.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let rest = whole.split_off(n_common);
    Ok((whole, rest))
}

fn ids(
    record: &Map<String, Value>,
    key: &str,
    place: &str,
    tokenizer: &dyn Tokenize,
) -> Result<Vec<u32>> {
    let list = record.get(key).and_then(Value::as_array);
    let ids: Option<Vec<u32>> = list.and_then(|list| {
        list.iter()
            .map(|id| u32::try_from(id.as_u64()?).ok())
            .collect()
    });
    let Some(ids) = ids else {
        return Err(Error::Data(format!(
            "{place}: expected a list of token ids under `{key}`"
        )));
    };
    tokenizer.check(&ids).map_err(|e| e.at(place))?;
    Ok(ids)
}
