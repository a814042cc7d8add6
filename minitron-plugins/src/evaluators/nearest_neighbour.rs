use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Result};
use minitron_core::evaluate::{Pooling, SentenceModules, sentence_embeddings};
use minitron_core::windows::Tokenize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Tensor};

use super::skipped::Skipped;
use super::{records, text};

/// Share of sentences (`accuracy`) whose label is that of the majority of their k nearest
/// neighbours by the cosine of sentence embeddings, the nearest deciding between equal counts. An
/// embedding is the last hidden state, pooled as the model's folder says and passed through the
/// Dense and Normalize modules that it names; the mean over all tokens where it names none.
///
/// A record holds a text and a label. Sentences of the same tokens are embedded once, so that they
/// are equally near.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NearestNeighbour {
    /// The file of sentences to label: JSON lines, JSON or Parquet.
    pub path: PathBuf,
    /// The file of their neighbours; the other sentences of `path` where there is none.
    pub reference: Option<PathBuf>,
    /// Field of the sentence.
    pub text: String,
    /// Field of its label.
    pub label: String,
    /// Neighbours asked.
    pub k: usize,
    /// Tokens of a sentence, special tokens included; longer ones are cut, and at the model's
    /// positions.
    pub max_tokens: usize,
    /// How states become one vector, `mean` or `cls`, whatever the model's folder says.
    pub pooling: Option<Pooling>,
    /// Whether a record that cannot be used is an error; else it is skipped, and `n_skipped` counts
    /// it.
    pub strict: bool,
}

impl Default for NearestNeighbour {
    fn default() -> Self {
        NearestNeighbour {
            path: PathBuf::new(),
            reference: None,
            text: "text".to_owned(),
            label: "label".to_owned(),
            k: 1,
            max_tokens: 128,
            pooling: None,
            strict: false,
        }
    }
}

minitron_core::plugin! {
    Evaluator for NearestNeighbour {
        tag: "nearest_neighbour",
        summary: "accuracy of labelling sentences as their nearest neighbours are",
        source: "embeddings of arXiv 1908.10084, section 3; Cover and Hart 1967, doi \
                 10.1109/TIT.1967.1053964",
    }
}

/// A file's different sentences, shortest first, and the items that have each.
struct Items {
    sentences: Vec<Vec<u32>>,
    owners: Vec<Vec<usize>>,
    labels: Vec<String>,
}

#[typetag::serde(name = "nearest_neighbour")]
impl Evaluator for NearestNeighbour {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let tokenizer = subject
            .tokenizer
            .ok_or_else(|| Error::Data("nearest_neighbour needs a tokenizer".into()))?;
        if self.k == 0 {
            return Err(Error::Recipe("k: expected at least 1".into()));
        }
        let max_tokens = self
            .max_tokens
            .min(subject.model.spec.options.max_positions);
        let mut skipped = Skipped::new(self.strict);
        let asked = self.items(&self.path, tokenizer, max_tokens, &mut skipped)?;
        let others = match &self.reference {
            Some(path) => Some(self.items(path, tokenizer, max_tokens, &mut skipped)?),
            None => None,
        };
        let known = others.as_ref().unwrap_or(&asked);
        let asked_ue = self.embeddings(subject, &asked)?;
        let known_ue = if others.is_some() {
            self.embeddings(subject, known)?
        } else {
            asked_ue.shallow_clone()
        };
        let n_nearest = self.k.saturating_add(1).min(known.sentences.len());
        let mut n_right = 0u64;
        let nearest = nearest(&asked_ue, &known_ue, n_nearest)?;
        for (owners, nearest) in asked.owners.iter().zip(nearest) {
            for &item in owners {
                let neighbours = nearest
                    .iter()
                    .filter_map(|&row| known.owners.get(row))
                    .flatten()
                    .copied();
                // Without a reference, an item is no neighbour of its own.
                let labels: Vec<&String> = neighbours
                    .filter(|&other| others.is_some() || other != item)
                    .take(self.k)
                    .filter_map(|item| known.labels.get(item))
                    .collect();
                let said = majority(&labels)
                    .ok_or_else(|| Error::Data("a single sentence has no neighbours".into()))?;
                n_right += u64::from(asked.labels.get(item) == Some(said));
            }
        }
        let n_items = asked.labels.len() as f64;
        let mut measured = Measurements::from([
            ("accuracy".to_owned(), n_right as f64 / n_items),
            ("n_items".to_owned(), n_items),
        ]);
        skipped.report(subject, &self.path, &mut measured);
        Ok(measured)
    }
}

impl NearestNeighbour {
    fn items(
        &self,
        path: &Path,
        tokenizer: &dyn Tokenize,
        max_tokens: usize,
        skipped: &mut Skipped,
    ) -> Result<Items> {
        let mut by_sentence: BTreeMap<(usize, Vec<u32>), Vec<usize>> = BTreeMap::new();
        let mut labels = Vec::new();
        for (place, record) in records(path)? {
            let item = self.item(&record, &place, tokenizer, max_tokens);
            let Some((ids, label)) = skipped.take(item)? else {
                continue;
            };
            by_sentence
                .entry((ids.len(), ids))
                .or_default()
                .push(labels.len());
            labels.push(label);
        }
        skipped.check(labels.len(), path)?;
        let (sentences, owners) = by_sentence
            .into_iter()
            .map(|((_, ids), owners)| (ids, owners))
            .unzip();
        Ok(Items {
            sentences,
            owners,
            labels,
        })
    }

    /// A record's sentence with its special tokens, and its label.
    fn item(
        &self,
        record: &Map<String, Value>,
        place: &str,
        tokenizer: &dyn Tokenize,
        max_tokens: usize,
    ) -> Result<(Vec<u32>, String)> {
        let (first, last) = tokenizer.special_tokens().unzip();
        let room = max_tokens.saturating_sub(first.iter().chain(&last).count());
        let mut ids = tokenizer
            .encode(text(record, &[self.text.as_str()], place)?)
            .map_err(|e| e.at(place))?;
        ids.truncate(room);
        let ids: Vec<u32> = first.into_iter().chain(ids).chain(last).collect();
        if ids.is_empty() {
            return Err(Error::Data(format!(
                "{place}: expected at least one token under `{}`",
                self.text
            )));
        }
        match record.get(&self.label) {
            Some(Value::String(label)) => Ok((ids, label.clone())),
            Some(label) if !label.is_null() => Ok((ids, label.to_string())),
            _ => Err(Error::Data(format!(
                "{place}: expected a label under `{}`",
                self.label
            ))),
        }
    }

    fn embeddings(&self, subject: &Subject, items: &Items) -> Result<Tensor> {
        let modules = SentenceModules::of(subject.model, self.pooling)?;
        // Sentences are short beside windows.
        let batch_size = subject.batch_size.clamp(1, 1 << 16) * 8;
        sentence_embeddings(
            subject.model,
            &items.sentences,
            &modules,
            batch_size,
            subject.progress,
        )
    }
}

/// For each of the rows [U, E], the rows of the others that lie nearest, nearest first.
fn nearest(asked_ue: &Tensor, known_ue: &Tensor, n_nearest: usize) -> Result<Vec<Vec<usize>>> {
    const ROWS: i64 = 256;
    let (n_asked, _) = asked_ue.size2()?;
    let known_eu = known_ue.f_transpose(0, 1)?;
    let mut found = Vec::new();
    for start in (0..n_asked).step_by(ROWS as usize) {
        let cosine_nu = asked_ue
            .f_narrow(0, start, ROWS.min(n_asked - start))?
            .f_matmul(&known_eu)?;
        let (_, rows_nk) = cosine_nu.f_topk(n_nearest as i64, -1, true, true)?;
        let rows = Vec::<i64>::try_from(rows_nk.f_to_device(Device::Cpu)?.f_reshape([-1i64])?)?;
        found.extend(
            rows.chunks(n_nearest)
                .map(|rows| rows.iter().map(|&row| row as usize).collect()),
        );
    }
    Ok(found)
}

/// The most frequent label; of those as frequent, the first.
fn majority<'a>(labels: &[&'a String]) -> Option<&'a String> {
    let from_last = labels.iter().copied().rev();
    from_last.max_by_key(|label| labels.iter().filter(|other| *other == label).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_decides_between_equal_counts() {
        let labels = ["a", "b", "b", "a", "c"].map(str::to_owned);
        let said =
            |n: usize| majority(&labels.iter().take(n).collect::<Vec<_>>()).map(String::as_str);
        assert_eq!(
            [said(0), said(1), said(2), said(3), said(4), said(5)],
            [None, Some("a"), Some("a"), Some("b"), Some("a"), Some("a")]
        );
    }
}
