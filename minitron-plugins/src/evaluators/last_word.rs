use std::path::PathBuf;

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Result};
use minitron_core::evaluate::likelihoods;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::likely::{self, TextPair};
use super::skipped::Skipped;
use super::{insert_mean, records, text};

/// The word that ends a passage (LAMBADA): `acc` is the share of passages whose every token of the
/// word is the likeliest one, with its standard error `acc_stderr`; `perplexity` is exp(−mean log
/// p(word | context)), so it is a word's and not a token's.
///
/// A record holds `context` and `target`, a word that follows after a space, or `text`, whose last
/// word is meant. A context too long for the model loses its beginning. Both numbers are those of
/// the evaluation harness' `lambada_openai`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LastWord {
    /// The file of records: JSON lines, JSON or Parquet.
    pub path: PathBuf,
    /// Passages asked, the first ones; all where 0.
    pub questions: usize,
    /// Whether a passage that cannot be scored is an error; else it is skipped, and `n_skipped`
    /// counts it.
    pub strict: bool,
}

minitron_core::plugin! {
    Evaluator for LastWord {
        tag: "last_word",
        summary: "accuracy and perplexity of a passage's last word",
        source: "LAMBADA, arXiv 1606.06031, as lm-eval takes it",
    }
}

#[typetag::serde(name = "last_word")]
impl Evaluator for LastWord {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let tokenizer = likely::tokenizer(subject, "last_word")?;
        let asked = if self.questions == 0 {
            usize::MAX
        } else {
            self.questions
        };
        let mut skipped = Skipped::new(self.strict);
        let mut pairs = Vec::new();
        for (place, record) in records(&self.path)?.into_iter().take(asked) {
            pairs.extend(
                skipped
                    .take(passage(&record, &place))?
                    .map(|pair| (place, pair)),
            );
        }
        let mut continuations = Vec::new();
        for made in likely::continuations(subject, tokenizer, &pairs)? {
            continuations.extend(skipped.take(made)?);
        }
        skipped.check(continuations.len(), &self.path)?;
        let found = likelihoods(subject, &continuations)?;
        let n = found.len() as f64;
        let log = found.iter().map(|found| found.log).sum::<f64>() / n;
        let mut measured = Measurements::from([
            ("n_questions".to_owned(), n),
            ("perplexity".to_owned(), (-log).exp()),
        ]);
        let right: Vec<f64> = found
            .iter()
            .map(|found| f64::from(found.is_greedy))
            .collect();
        insert_mean(&mut measured, "acc", &right);
        skipped.report(subject, &self.path, &mut measured);
        Ok(measured)
    }
}

fn passage(record: &Map<String, Value>, place: &str) -> Result<TextPair> {
    if record.contains_key("target") {
        let target = text(record, &["target"], place)?;
        return Ok(TextPair::new(
            text(record, &["context", "prompt"], place)?,
            format!(" {target}"),
        ));
    }
    let whole = text(record, &["text"], place)?;
    match whole.rsplit_once(' ') {
        Some((context, word)) => Ok(TextPair::new(context, format!(" {word}"))),
        None => Err(Error::Data(format!(
            "{place}: expected words with spaces between them, got `{whole}`"
        ))),
    }
}
