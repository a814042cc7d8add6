use std::ops::Range;
use std::path::PathBuf;

use minitron_core::contract::{Document, Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Present, Result};
use minitron_core::evaluate::{Continuation, likelihoods};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::skipped::Skipped;
use super::{likely, wikitext};
use crate::corpora;
use crate::corpora::record::Record;
use crate::corpora::records::{has_records, records};

/// Perplexity of whole documents, per word and per byte: with the summed log-likelihood L over all
/// documents in nats, `word_perplexity` = exp(−L / words), `byte_perplexity` = exp(−L / bytes),
/// `bits_per_byte` = −L / (bytes · ln 2). They do not depend on the tokenizer, as a perplexity per
/// token does. Words are the pieces between runs of white space, an empty one at an end included;
/// bytes are UTF-8.
///
/// A document is read in windows of the model's positions: the first behind the prefix token
/// (beginning of sequence, else end), each later one behind one token of the window before, the
/// last behind as many as fill it. Every token is scored once, and these are the evaluation
/// harness' `loglikelihood_rolling` and its numbers; as there, a tokenizer that puts a
/// beginning-of-sequence token before a text has that token scored, too. `loss` and `perplexity` on
/// `--data` differ: they cut one stream of all documents into windows and score no window's first
/// token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RollingPerplexity {
    /// A document a record (JSON lines, JSON, Parquet), or one in all (`.txt`).
    pub path: PathBuf,
    /// The field, or column, that holds the text.
    pub field: String,
    /// Documents read, the first ones; all where 0.
    pub documents: usize,
    /// Tokens of a window; the model's positions where 0.
    pub seq_len: usize,
    /// The documents are pages of WikiText: they are scored as running text, while words and bytes
    /// are counted as stored.
    pub wikitext: bool,
    /// Whether a record that cannot be scored is an error; else it is skipped, and `n_skipped`
    /// counts it.
    pub strict: bool,
}

impl Default for RollingPerplexity {
    fn default() -> Self {
        RollingPerplexity {
            path: PathBuf::new(),
            field: "text".to_owned(),
            documents: 0,
            seq_len: 0,
            wikitext: false,
            strict: false,
        }
    }
}

minitron_core::plugin! {
    Evaluator for RollingPerplexity {
        tag: "rolling_perplexity",
        summary: "word and byte perplexity of whole documents",
        source: "lm-eval's loglikelihood_rolling (arXiv 2405.14782); windows after arXiv \
                 1812.10860",
    }
}

#[typetag::serde(name = "rolling_perplexity")]
impl Evaluator for RollingPerplexity {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let tokenizer = likely::tokenizer(subject, "rolling_perplexity")?;
        let mut skipped = Skipped::new(self.strict);
        let documents = if has_records(&self.path) {
            self.of_records(&mut skipped)?
        } else {
            self.whole()?
        };
        let n_words: usize = documents.iter().map(|text| n_words(text)).sum();
        let n_bytes: usize = documents.iter().map(String::len).sum();
        let running = match self.wikitext {
            true => documents
                .iter()
                .map(|page| wikitext::running(page))
                .collect::<Result<Vec<_>>>()?,
            false => documents,
        };
        let positions = subject.model.spec.options.max_positions;
        let width = if self.seq_len == 0 {
            positions
        } else {
            self.seq_len.min(positions)
        };
        let prefix = likely::prefix(tokenizer)?;
        let tokens =
            tokenizer.encode_whole(&running.iter().map(String::as_str).collect::<Vec<_>>())?;
        let n_tokens: usize = tokens.iter().map(Vec::len).sum();
        let mut all = Vec::new();
        for tokens in tokens {
            all.extend(windows(&tokens, prefix, width)?);
        }
        if all.is_empty() || n_bytes == 0 {
            return Err(Error::Data(format!(
                "{}: no text in it",
                self.path.display()
            )));
        }
        let log: f64 = likelihoods(subject, &all)?
            .iter()
            .map(|found| found.log)
            .sum();
        let (per_word, per_byte) = (-log / n_words as f64, -log / n_bytes as f64);
        let mut measured = Measurements::from([
            ("word_perplexity".to_owned(), per_word.exp()),
            ("byte_perplexity".to_owned(), per_byte.exp()),
            (
                "bits_per_byte".to_owned(),
                per_byte / std::f64::consts::LN_2,
            ),
            ("n_documents".to_owned(), running.len() as f64),
            ("n_words".to_owned(), n_words as f64),
            ("n_bytes".to_owned(), n_bytes as f64),
            ("n_tokens".to_owned(), n_tokens as f64),
        ]);
        skipped.report(subject, &self.path, &mut measured);
        Ok(measured)
    }
}

impl RollingPerplexity {
    /// The text of each record.
    fn of_records(&self, skipped: &mut Skipped) -> Result<Vec<String>> {
        let wanted = if self.documents == 0 {
            usize::MAX
        } else {
            self.documents
        };
        let mut texts = Vec::new();
        for record in records(&self.path, Some(&corpora::roots(&self.field)))? {
            if texts.len() == wanted {
                break;
            }
            texts.extend(skipped.take(self.text(&record?))?);
        }
        skipped.check(texts.len(), &self.path)?;
        Ok(texts)
    }

    fn text(&self, record: &Record) -> Result<String> {
        match corpora::document(&self.path, record, &self.field)? {
            Some(Document::Text(text)) => Ok(text),
            Some(_) => Err(self.no_text()),
            None => Err(Error::Data(format!(
                "{}: {}: `{}` is null",
                self.path.display(),
                record.place,
                self.field
            ))),
        }
    }

    /// The text of a file without records.
    fn whole(&self) -> Result<Vec<String>> {
        let mut text = String::new();
        let corpus = corpora::of_text(&self.path);
        for document in corpus.documents(0)? {
            match document? {
                Document::Text(last) => text.push_str(&last),
                Document::Part(part) => match *part {
                    Document::Text(part) => text.push_str(&part),
                    _ => return Err(self.no_text()),
                },
                Document::Tokens(_) | Document::Example(_) => return Err(self.no_text()),
            }
        }
        Ok(if text.is_empty() {
            Vec::new()
        } else {
            vec![text]
        })
    }

    fn no_text(&self) -> Error {
        Error::Data(format!(
            "{}: expected text, got token ids, which have neither words nor bytes",
            self.path.display()
        ))
    }
}

/// Pieces between runs of white space: one more than there are runs.
fn n_words(text: &str) -> usize {
    let mut was_space = false;
    let starts = text.chars().filter(|&c| {
        let is_space = likely::is_space(c);
        let starts = is_space && !was_space;
        was_space = is_space;
        starts
    });
    starts.count() + 1
}

/// A document's tokens, each scored once, in windows of which the model reads at most `width`
/// tokens.
fn windows(tokens: &[u32], prefix: u32, width: usize) -> Result<Vec<Continuation>> {
    let first = tokens.len().min(width);
    let mut windows = Vec::new();
    if first > 0 {
        windows.push(Continuation {
            context: vec![prefix],
            tokens: run(tokens, 0..first)?,
        });
    }
    let mut n_scored = first;
    while n_scored < tokens.len() {
        let end = tokens.len().min(n_scored + width);
        // As many before as the window has room for.
        let context = run(tokens, end.saturating_sub(width + 1)..n_scored)?;
        let tokens = run(tokens, n_scored..end)?;
        windows.push(Continuation { context, tokens });
        n_scored = end;
    }
    Ok(windows)
}

fn run(tokens: &[u32], of: Range<usize>) -> Result<Vec<u32>> {
    Ok(tokens.get(of).present("a run of a document")?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_as_pieces() {
        assert_eq!(
            ["", "a", " a", "a  b\n", "\u{1c}"].map(n_words),
            [1, 1, 2, 3, 2]
        );
    }

    #[test]
    fn every_token_is_scored_once_behind_a_full_window() {
        let tokens: Vec<u32> = (1..=10).collect();
        let found = windows(&tokens, 0, 4).unwrap();
        let expected = [
            (vec![0], vec![1, 2, 3, 4]),
            (vec![4], vec![5, 6, 7, 8]),
            (vec![6, 7, 8], vec![9, 10]),
        ];
        assert_eq!(
            found,
            expected.map(|(context, tokens)| Continuation { context, tokens })
        );
        assert_eq!(
            windows(&[5], 0, 4).unwrap(),
            [Continuation {
                context: vec![0],
                tokens: vec![5]
            }]
        );
        assert!(windows(&[], 0, 4).unwrap().is_empty());
    }
}
