//! What a teacher's cache holds and its bytes: the head, rows of probabilities, entries of windows.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use minitron_core::error::{Error, Result};

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
    /// Stored probabilities per row.
    pub top_k: usize,
    /// Their type.
    pub dtype: CacheType,
    /// The teacher's name, for people; files of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
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
            model: None,
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
        let value = if self.dtype == CacheType::F16 { 2 } else { 4 };
        self.top_k * (id + value) + 4
    }

    fn has_short_ids(&self) -> bool {
        self.vocab <= 1 << 16
    }

    /// The keys that differ, with both values.
    pub(super) fn differences(&self, other: &CacheHeader) -> Vec<String> {
        let [ours, theirs] =
            [self, other].map(|header| serde_json::to_value(header).unwrap_or_default());
        let pairs = ours.as_object().into_iter().flatten();
        // A copy of the teacher is the teacher.
        let differing =
            pairs.filter(|(key, value)| *key != "model" && theirs.get(*key) != Some(value));
        differing
            .map(|(key, value)| format!("{key}: stored {}, wanted {value}", theirs[key.as_str()]))
            .collect()
    }

    /// Rows as bytes.
    pub(super) fn encode(&self, rows: &TopRows) -> Vec<u8> {
        let k = self.top_k;
        let mut bytes = Vec::with_capacity(rows.log_tail.len() * self.bytes_per_token());
        let tops = rows.ids.chunks(k).zip(rows.log_p.chunks(k));
        for ((ids, log_p), tail) in tops.zip(&rows.log_tail) {
            for &id in ids {
                match self.has_short_ids() {
                    true => bytes.extend((id as u16).to_le_bytes()),
                    false => bytes.extend(id.to_le_bytes()),
                }
            }
            for &value in log_p {
                match self.dtype {
                    CacheType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    CacheType::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            bytes.extend(tail.to_le_bytes());
        }
        bytes
    }

    /// Adds what one row's bytes say.
    pub(super) fn decode(&self, row: &[u8], into: &mut TopRows) {
        let k = self.top_k;
        let (ids, rest) = row.split_at(k * if self.has_short_ids() { 2 } else { 4 });
        let (values, tail) = rest.split_at(rest.len() - 4);
        for bytes in ids.chunks(ids.len() / k) {
            into.ids.push(token_id(bytes));
        }
        for bytes in values.chunks(values.len() / k) {
            into.log_p.push(log_probability(bytes));
        }
        into.log_tail.push(log_probability(tail));
    }
}

/// Rows of one or more windows. N rows, K stored probabilities.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopRows {
    /// Token ids [N·K], most probable first.
    pub ids: Vec<u32>,
    /// Their log-probabilities [N·K].
    pub log_p: Vec<f32>,
    /// Log of the mass of all other tokens \[N\].
    pub log_tail: Vec<f32>,
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
