//! What a teacher said, on disk: of every predicted token the largest probabilities and the mass of
//! the rest.
//!
//! ```text
//! cache.json   whose words these are and how they are stored
//! rows.bin     one record a row: k token ids (u16 or u32), k log-probabilities (f16 or f32),
//!              log of the tail's mass (f32)
//! index.bin    one entry a window: key [16], first row u64, number of rows u32,
//!              CRC-32C of the rows u32
//! ```
//! Windows are found by their content, so that shuffling, other batches or more data do not matter.
//! An entry is written after its rows: what a process that ended early left half done is cut off at
//! the next opening.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::records::{CacheEntry, CacheHeader, ENTRY_BYTES, Key, TopRows};
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::output::write_atomic;

const HEADER: &str = "cache.json";
const ROWS: &str = "rows.bin";
const INDEX: &str = "index.bin";

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
        let (rows, index) = (open_file(&dir.join(ROWS))?, open_file(&dir.join(INDEX))?);
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
            let (key, entry) = CacheEntry::parse(entry);
            if entry.first_row != self.n_rows {
                let at = self.entries.len();
                let message = format!(
                    "damaged: entry {at} does not follow the one before it; delete the folder"
                );
                return Err(Error::checkpoint(&path, message));
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
        for row in bytes.chunks_exact(row_bytes) {
            self.header.decode(row, into);
        }
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
            let row_bytes = self.header.bytes_per_token() as u64;
            self.cut(ROWS, &self.rows, self.n_rows.saturating_mul(row_bytes))?;
            let index_bytes = self.entries.len().saturating_mul(ENTRY_BYTES) as u64;
            self.cut(INDEX, &self.index, index_bytes)?;
            self.is_writer = true;
        }
        if self.holds(&key) {
            return Ok(true);
        }
        let bytes = self.header.encode(rows);
        let entry = CacheEntry {
            first_row: self.n_rows,
            n_rows: rows.log_tail.len() as u32,
            crc: crc32c::crc32c(&bytes),
        };
        if let Err(error) = self.write(&bytes, &entry.line(&key)) {
            // What was written in part goes before anything else follows.
            self.is_writer = false;
            return Err(error);
        }
        self.n_rows += u64::from(entry.n_rows);
        self.entries.insert(key, entry);
        Ok(true)
    }

    /// Rows first, then their entry.
    fn write(&mut self, rows: &[u8], entry: &[u8]) -> Result<()> {
        self.rows.write_all(rows).at_path(self.dir.join(ROWS))?;
        self.index.write_all(entry).at_path(self.dir.join(INDEX))
    }

    /// Rows as they come back from the file.
    pub fn stored(&self, rows: &TopRows) -> TopRows {
        let mut stored = TopRows::default();
        let bytes = self.header.encode(rows);
        for row in bytes.chunks_exact(self.header.bytes_per_token()) {
            self.header.decode(row, &mut stored);
        }
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
}

fn open_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .at_path(path)
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
