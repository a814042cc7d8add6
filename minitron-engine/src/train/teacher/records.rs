//! What a teacher's cache holds and its bytes: the head, rows of probabilities or of draws, entries
//! of windows.

use std::collections::BTreeSet;
use std::ops::Range;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use minitron_core::error::{Error, Present, Result};

const FORMAT: &str = "minitron teacher cache 1";

/// Bytes of an entry in the index.
pub(super) const ENTRY_BYTES: usize = 32;

/// The type of the stored log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheType {
    /// Two bytes: a relative error of 0.05 % of the log-probability.
    #[default]
    F16,
    /// Four bytes.
    F32,
}

impl FromStr for CacheType {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f16" => Ok(CacheType::F16),
            "f32" => Ok(CacheType::F32),
            other => Err(Error::unknown("cache type", other, ["f16", "f32"])),
        }
    }
}

/// Whose words are stored, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheHeader {
    /// Name and version of the format.
    pub format: String,
    /// Digest of the teacher's config and weights.
    pub teacher: String,
    /// The type it computed in.
    pub computed_in: String,
    /// Token ids that its distribution is over: its vocabulary, or as many as the student has,
    /// where those are fewer.
    pub vocab: usize,
    /// Stored probabilities per row; none where token ids are drawn instead.
    pub top_k: usize,
    /// Their type.
    pub dtype: CacheType,
    /// What is drawn per row, where that is stored instead of the largest probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draws: Option<Draws>,
    /// The teacher's name, for people; files of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// Token ids that are drawn from a teacher's distribution with replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draws {
    /// Ids per row.
    pub n: usize,
    /// What they follow from, with the window's content.
    pub seed: u64,
}

impl CacheHeader {
    /// For a teacher, storing at most its whole vocabulary.
    pub fn new(
        teacher: String,
        computed_in: String,
        vocab: usize,
        top_k: usize,
        dtype: CacheType,
    ) -> Self {
        let top_k = top_k.clamp(1, vocab.max(1));
        CacheHeader {
            format: FORMAT.into(),
            teacher,
            computed_in,
            vocab,
            top_k,
            dtype,
            draws: None,
            model: None,
        }
    }

    /// The same with so many ids drawn per row instead of the largest probabilities.
    #[must_use]
    pub fn drawing(self, n: usize, seed: u64) -> Self {
        CacheHeader {
            top_k: 0,
            draws: Some(Draws { n: n.max(1), seed }),
            ..self
        }
    }

    /// The same with the teacher's name.
    #[must_use]
    pub fn named(self, model: String) -> Self {
        CacheHeader {
            model: Some(model),
            ..self
        }
    }

    /// Bytes of one predicted token.
    pub fn bytes_per_token(&self) -> usize {
        let id = if self.has_short_ids() { 2 } else { 4 };
        if self.draws.is_some() {
            // How often an id was drawn is how often it stands there.
            return self.n_ids() * id;
        }
        let value = if self.dtype == CacheType::F16 { 2 } else { 4 };
        self.top_k * (id + value) + 4
    }

    /// Stored ids per row.
    pub fn n_ids(&self) -> usize {
        self.draws.map_or(self.top_k, |draws| draws.n).max(1)
    }

    /// Stored probabilities per row.
    fn n_values(&self) -> usize {
        match self.draws {
            Some(_) => 0,
            None => self.top_k,
        }
    }

    /// Numbers of each row for all other tokens.
    fn n_tails(&self) -> usize {
        usize::from(self.draws.is_none())
    }

    /// Some of the rows.
    pub(super) fn part(&self, rows: &CachedRows, range: Range<usize>) -> Result<CachedRows> {
        let (n_ids, k, n_tails) = (self.n_ids(), self.n_values(), self.n_tails());
        Ok(CachedRows {
            ids: some(&rows.ids, &range, n_ids)?.to_vec(),
            log_p: some(&rows.log_p, &range, k)?.to_vec(),
            log_tail: some(&rows.log_tail, &range, n_tails)?.to_vec(),
        })
    }

    fn has_short_ids(&self) -> bool {
        self.vocab <= 1 << 16
    }

    /// The keys that differ, with both values.
    pub(super) fn differences(&self, other: &CacheHeader) -> Vec<String> {
        let [ours, theirs] =
            [self, other].map(|header| serde_json::to_value(header).unwrap_or_default());
        let all = [&ours, &theirs].into_iter().filter_map(|it| it.as_object());
        let keys: BTreeSet<&str> = all.flat_map(|it| it.keys().map(String::as_str)).collect();
        // A copy of the teacher is the teacher.
        let differing = keys
            .into_iter()
            .filter(|key| *key != "model" && theirs.get(*key) != ours.get(*key));
        differing
            .map(|key| format!("{key}: stored {}, wanted {}", theirs[key], ours[key]))
            .collect()
    }

    /// Rows as bytes.
    pub(super) fn encode(&self, rows: &CachedRows) -> Result<Vec<u8>> {
        let (n_ids, k) = (self.n_ids(), self.n_values());
        let n_rows = rows.ids.len() / n_ids;
        let mut bytes = Vec::with_capacity(n_rows * self.bytes_per_token());
        for row in 0..n_rows {
            for &id in at(&rows.ids, row, n_ids)? {
                match self.has_short_ids() {
                    true => bytes.extend((id as u16).to_le_bytes()),
                    false => bytes.extend(id.to_le_bytes()),
                }
            }
            for &value in at(&rows.log_p, row, k)? {
                match self.dtype {
                    CacheType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    CacheType::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            for tail in at(&rows.log_tail, row, self.n_tails())? {
                bytes.extend(tail.to_le_bytes());
            }
        }
        Ok(bytes)
    }

    /// Adds what one row's bytes say.
    pub(super) fn decode(&self, row: &[u8], into: &mut CachedRows) {
        let id_bytes = if self.has_short_ids() { 2 } else { 4 };
        let (ids, rest) = row.split_at(self.n_ids() * id_bytes);
        for bytes in ids.chunks(id_bytes) {
            into.ids.push(token_id(bytes));
        }
        if self.draws.is_some() {
            return;
        }
        let (values, tail) = rest.split_at(rest.len() - 4);
        for bytes in values.chunks(values.len() / self.top_k) {
            into.log_p.push(log_probability(bytes));
        }
        into.log_tail.push(log_probability(tail));
    }
}

/// Rows of one or more windows. N rows, K stored ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CachedRows {
    /// Token ids [N·K]: the most probable first, or all that were drawn, ascending.
    pub ids: Vec<u32>,
    /// Their log-probabilities [N·K]; nothing of draws.
    pub log_p: Vec<f32>,
    /// Log of the mass of all other tokens \[N\]; nothing of draws.
    pub log_tail: Vec<f32>,
}

impl CachedRows {
    /// Adds those of others.
    pub(super) fn extend(&mut self, others: &CachedRows) {
        self.ids.extend(&others.ids);
        self.log_p.extend(&others.log_p);
        self.log_tail.extend(&others.log_tail);
    }
}

/// The numbers of some rows, of so many each.
fn some<'a, T>(numbers: &'a [T], rows: &Range<usize>, each: usize) -> Result<&'a [T]> {
    let range = rows.start * each..rows.end * each;
    numbers.get(range).present("numbers of cached rows")
}

/// Those of one row.
fn at<T>(numbers: &[T], row: usize, each: usize) -> Result<&[T]> {
    some(numbers, &(row..row + 1), each)
}

/// A window's key: a digest of its tokens and predicted positions.
pub type Key = [u8; 16];

/// Where a window's rows are.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheEntry {
    pub first_row: u64,
    pub n_rows: u32,
    pub crc: u32,
}

impl CacheEntry {
    /// Of as many bytes as an entry has.
    pub fn parse(bytes: &[u8]) -> (Key, Self) {
        // Absent in no entry: they are cut to their length before.
        let entry = CacheEntry {
            first_row: field(bytes, 16).map_or(0, u64::from_le_bytes),
            n_rows: field(bytes, 24).map_or(0, u32::from_le_bytes),
            crc: field(bytes, 28).map_or(0, u32::from_le_bytes),
        };
        (field(bytes, 0).unwrap_or_default(), entry)
    }

    /// As it stands in the index.
    pub fn line(&self, key: &Key) -> Vec<u8> {
        let mut line = key.to_vec();
        line.extend(self.first_row.to_le_bytes());
        line.extend(self.n_rows.to_le_bytes());
        line.extend(self.crc.to_le_bytes());
        line
    }
}

/// So many bytes from a place on.
fn field<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from + N)?.try_into().ok()
}

/// Of two bytes or four.
fn token_id(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |id, &byte| (id << 8) | u32::from(byte))
}

/// Of two bytes or four.
fn log_probability(bytes: &[u8]) -> f32 {
    match bytes {
        [a, b] => half::f16::from_le_bytes([*a, *b]).to_f32(),
        [a, b, c, d] => f32::from_le_bytes([*a, *b, *c, *d]),
        _ => f32::NEG_INFINITY,
    }
}
