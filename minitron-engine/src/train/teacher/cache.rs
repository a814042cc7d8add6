//! What a teacher said, on disk: of every predicted token the largest probabilities and the mass of
//! the rest.
//!
//! ```text
//! cache.json   whose words these are and how they are stored
//! rows.bin     one record a row: k token ids (u16 or u32), k log-probabilities (f16 or f32), log of the tail's mass (f32)
//! index.bin    one entry a window: key [16], first row u64, number of rows u32, CRC-32C of the rows u32
//! ```
//! Windows are found by their content, so that shuffling, other batches or more data do not matter.
//! An entry is written after its rows: what a process that ended early left half done is cut off at
//! the next opening.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::output::write_atomic;

const HEADER: &str = "cache.json";
const ROWS: &str = "rows.bin";
const INDEX: &str = "index.bin";
const ENTRY_BYTES: usize = 32;
const FORMAT: &str = "minitron teacher cache 1";

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
    fn differences(&self, other: &CacheHeader) -> Vec<String> {
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

#[derive(Debug, Clone, Copy)]
struct CacheEntry {
    first_row: u64,
    n_rows: u32,
    crc: u32,
}

/// An opened cache.
#[derive(Debug)]
pub struct TeacherCache {
    dir: PathBuf,
    header: CacheHeader,
    rows: File,
    index: File,
    entries: HashMap<Key, CacheEntry>,
    n_rows: u64,
    is_writer: bool,
}

impl TeacherCache {
    /// Opens a folder, or begins one.
    ///
    /// # Errors
    /// `Checkpoint` naming the file where the cache is damaged, or of another teacher or layout;
    /// `Io`.
    pub fn open(dir: &Path, header: CacheHeader) -> Result<Self> {
        fs::create_dir_all(dir).at_path(dir)?;
        let path = dir.join(HEADER);
        if path.exists() {
            check_header(&path, &header)?;
        } else {
            if dir.join(ROWS).exists() || dir.join(INDEX).exists() {
                return Err(Error::checkpoint(
                    &path,
                    "missing beside the cache's other files; delete the folder",
                ));
            }
            let text = serde_json::to_string_pretty(&header)
                .map_err(|e| Error::Internal(format!("cache: {e}")))?;
            write_atomic(&path, text)?;
        }
        let open = |name: &str| {
            let path = dir.join(name);
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&path)
                .at_path(&path)
        };
        let (rows, index) = (open(ROWS)?, open(INDEX)?);
        let mut cache = TeacherCache {
            dir: dir.into(),
            header,
            rows,
            index,
            entries: HashMap::new(),
            n_rows: 0,
            is_writer: false,
        };
        cache.read_index()?;
        Ok(cache)
    }

    /// Whose words these are.
    pub fn header(&self) -> &CacheHeader {
        &self.header
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a window is there.
    pub fn holds(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// Takes the one right to write, for as long as this is open; false where another run has it.
    fn lock(&self) -> Result<bool> {
        match self.index.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(Error::io(self.dir.join(INDEX), error)),
        }
    }

    /// Whole entries whose rows are there; a torn end stays unread and is cut off before the next
    /// write.
    fn read_index(&mut self) -> Result<()> {
        (self.n_rows, self.entries) = (0, HashMap::new());
        let path = self.dir.join(INDEX);
        let bytes = fs::read(&path).at_path(&path)?;
        let rows_path = self.dir.join(ROWS);
        let n_stored =
            self.rows.metadata().at_path(&rows_path)?.len() / self.header.bytes_per_token() as u64;
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            let (key, entry) = parse_entry(entry);
            if entry.first_row != self.n_rows {
                let at = self.entries.len();
                return Err(Error::checkpoint(
                    &path,
                    format!(
                        "damaged: entry {at} does not follow the one before it; delete the folder"
                    ),
                ));
            }
            let end = entry.first_row.saturating_add(u64::from(entry.n_rows));
            if end > n_stored {
                break;
            }
            self.n_rows = end;
            self.entries.insert(key, entry);
        }
        Ok(())
    }

    /// A window's rows; none where it is not there.
    ///
    /// # Errors
    /// `Checkpoint` naming the file where the rows are not those that were written.
    pub fn read(&self, key: &Key, into: &mut TopRows) -> Result<bool> {
        let Some(entry) = self.entries.get(key) else {
            return Ok(false);
        };
        let path = self.dir.join(ROWS);
        let row_bytes = self.header.bytes_per_token();
        let mut bytes = vec![0; row_bytes * entry.n_rows as usize];
        let start = entry.first_row.saturating_mul(row_bytes as u64);
        self.rows.read_exact_at(&mut bytes, start).at_path(&path)?;
        if crc32c::crc32c(&bytes) != entry.crc {
            let message = format!(
                "damaged: rows from {} on are not those that were written; delete the folder",
                entry.first_row
            );
            return Err(Error::checkpoint(&path, message));
        }
        bytes
            .chunks_exact(row_bytes)
            .for_each(|row| self.decode(row, into));
        Ok(true)
    }

    /// Adds a window's rows; false where another run writes here, and this one can only read.
    ///
    /// # Errors
    /// `Io` for a full disk; the cache stays whole.
    pub fn append(&mut self, key: Key, rows: &TopRows) -> Result<bool> {
        if !self.is_writer {
            if !self.lock()? {
                return Ok(false);
            }
            // What another run has added since this one opened stays.
            self.read_index()?;
            self.cut(
                ROWS,
                &self.rows,
                self.n_rows
                    .saturating_mul(self.header.bytes_per_token() as u64),
            )?;
            self.cut(
                INDEX,
                &self.index,
                self.entries.len().saturating_mul(ENTRY_BYTES) as u64,
            )?;
            self.is_writer = true;
        }
        if self.holds(&key) {
            return Ok(true);
        }
        let bytes = self.encode(rows);
        let entry = CacheEntry {
            first_row: self.n_rows,
            n_rows: rows.log_tail.len() as u32,
            crc: crc32c::crc32c(&bytes),
        };
        let written = self.rows.write_all(&bytes).at_path(self.dir.join(ROWS));
        let written = written.and_then(|()| {
            let mut line = key.to_vec();
            line.extend(entry.first_row.to_le_bytes());
            line.extend(entry.n_rows.to_le_bytes());
            line.extend(entry.crc.to_le_bytes());
            self.index.write_all(&line).at_path(self.dir.join(INDEX))
        });
        if written.is_err() {
            // What was written in part goes before anything else follows.
            self.is_writer = false;
            return written.map(|()| false);
        }
        self.n_rows += u64::from(entry.n_rows);
        self.entries.insert(key, entry);
        Ok(true)
    }

    /// Rows as they come back from the file.
    pub fn stored(&self, rows: &TopRows) -> TopRows {
        let mut stored = TopRows::default();
        self.encode(rows)
            .chunks_exact(self.header.bytes_per_token())
            .for_each(|row| self.decode(row, &mut stored));
        stored
    }

    fn cut(&self, name: &str, file: &File, len: u64) -> Result<()> {
        let path = self.dir.join(name);
        match file.metadata().at_path(&path)?.len() == len {
            true => Ok(()),
            false => file.set_len(len).at_path(&path),
        }
    }

    /// Waits until all of it is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.rows.sync_data().at_path(self.dir.join(ROWS))?;
        self.index.sync_data().at_path(self.dir.join(INDEX))
    }

    fn encode(&self, rows: &TopRows) -> Vec<u8> {
        let k = self.header.top_k;
        let mut bytes = Vec::with_capacity(rows.log_tail.len() * self.header.bytes_per_token());
        for ((ids, log_p), tail) in rows
            .ids
            .chunks(k)
            .zip(rows.log_p.chunks(k))
            .zip(&rows.log_tail)
        {
            for &id in ids {
                match self.header.has_short_ids() {
                    true => bytes.extend((id as u16).to_le_bytes()),
                    false => bytes.extend(id.to_le_bytes()),
                }
            }
            for &value in log_p {
                match self.header.dtype {
                    CacheType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    CacheType::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            bytes.extend(tail.to_le_bytes());
        }
        bytes
    }

    fn decode(&self, row: &[u8], into: &mut TopRows) {
        let k = self.header.top_k;
        let (ids, rest) = row.split_at(k * if self.header.has_short_ids() { 2 } else { 4 });
        let (values, tail) = rest.split_at(rest.len() - 4);
        let id_of = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0u32, |id, &byte| (id << 8) | u32::from(byte))
        };
        into.ids.extend(ids.chunks(ids.len() / k).map(id_of));
        into.log_p
            .extend(values.chunks(values.len() / k).map(|bytes| match bytes {
                [a, b] => half::f16::from_le_bytes([*a, *b]).to_f32(),
                [a, b, c, d] => f32::from_le_bytes([*a, *b, *c, *d]),
                _ => f32::NEG_INFINITY,
            }));
        into.log_tail.push(
            tail.try_into()
                .map_or(f32::NEG_INFINITY, f32::from_le_bytes),
        );
    }
}

fn check_header(path: &Path, wanted: &CacheHeader) -> Result<()> {
    let text = read_text(path).at_path(path)?;
    let found: CacheHeader = serde_json::from_str(&text).map_err(|e| {
        Error::checkpoint(
            path,
            format!("not the head of a teacher cache: {e}; delete the folder"),
        )
    })?;
    let differences = wanted.differences(&found);
    if differences.is_empty() {
        return Ok(());
    }
    let whose = match (&found.model, &wanted.model) {
        (Some(stored), Some(wanted)) if stored != wanted => {
            format!("of `{stored}`, not of `{wanted}`")
        }
        (Some(stored), _) => format!("of `{stored}` in another state or form"),
        _ => "of another run".to_owned(),
    };
    let message = format!(
        "a teacher cache {whose} ({}); name another folder",
        differences.join("; ")
    );
    Err(Error::checkpoint(path, message))
}

fn parse_entry(bytes: &[u8]) -> (Key, CacheEntry) {
    // Absent in no entry: they are cut to their length before.
    let part = |from: usize, len: usize| bytes.get(from..from + len).unwrap_or_default();
    let key = part(0, 16).try_into().unwrap_or_default();
    let first_row = part(16, 8).try_into().map_or(0, u64::from_le_bytes);
    let number = |from| part(from, 4).try_into().map_or(0, u32::from_le_bytes);
    (
        key,
        CacheEntry {
            first_row,
            n_rows: number(24),
            crc: number(28),
        },
    )
}
