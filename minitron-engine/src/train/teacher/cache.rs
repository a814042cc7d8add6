//! What a teacher said, on disk: of every predicted token the largest probabilities and the mass of
//! the rest, or token ids drawn from all of them.
//!
//! ```text
//! cache.json   whose words these are and how they are stored
//! rows.bin     one record a row: k token ids (u16 or u32), k log-probabilities (f16 or f32),
//!              log of the tail's mass (f32); of draws n token ids, ascending, each as often as
//!              it was drawn
//! index.bin    one entry a window: key [16], first row u64, number of rows u32,
//!              CRC-32C of the rows u32
//! rank-R/      rows.bin and index.bin of what rank R of several processes wrote
//! ```
//! Windows are found by their content, so that shuffling, other batches or more data do not matter.
//! Each rank writes to a part of its own, the first one to the folder itself, and reads all parts.
//! An entry is written after its rows: what a process that ended early left half done is cut off
//! before that part is written to again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::records::{CacheEntry, CacheHeader, CachedRows, ENTRY_BYTES, Key};
use minitron_core::error::{Error, IoContext, Present, Result};
use minitron_core::files::read_text;
use minitron_core::output::write_atomic;

const HEADER: &str = "cache.json";
const ROWS: &str = "rows.bin";
const INDEX: &str = "index.bin";
const RANK: &str = "rank-";

/// An opened cache.
#[derive(Debug)]
pub struct TeacherCache {
    dir: PathBuf,
    header: CacheHeader,
    /// The own one first.
    parts: Vec<Part>,
    /// By part and place in it.
    entries: HashMap<Key, (usize, CacheEntry)>,
    is_writer: bool,
}

/// What one rank wrote.
#[derive(Debug)]
struct Part {
    dir: PathBuf,
    rows: File,
    index: File,
    n_rows: u64,
    /// Whole entries that were read.
    n_entries: usize,
}

impl Part {
    fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).at_path(&dir)?;
        Ok(Part {
            rows: open_file(&dir.join(ROWS))?,
            index: open_file(&dir.join(INDEX))?,
            dir,
            n_rows: 0,
            n_entries: 0,
        })
    }

    /// Whole entries, whose rows are there, that were not read yet; a torn end stays unread.
    fn unread(&mut self, row_bytes: usize) -> Result<Vec<(Key, CacheEntry)>> {
        let path = self.dir.join(INDEX);
        let n_stored = {
            let path = self.dir.join(ROWS);
            self.rows.metadata().at_path(&path)?.len() / row_bytes as u64
        };
        let start = self.n_entries.saturating_mul(ENTRY_BYTES) as u64;
        let len = self.index.metadata().at_path(&path)?.len();
        let mut bytes = vec![0; usize::try_from(len.saturating_sub(start)).unwrap_or_default()];
        self.index.read_exact_at(&mut bytes, start).at_path(&path)?;
        let mut entries = Vec::new();
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            let (key, entry) = CacheEntry::parse(entry);
            if entry.first_row != self.n_rows {
                let at = self.n_entries;
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
            self.n_entries += 1;
            entries.push((key, entry));
        }
        Ok(entries)
    }

    /// Takes the one right to write, for as long as this is open; false where another run has it.
    fn lock(&self) -> Result<bool> {
        match self.index.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(Error::io(self.dir.join(INDEX), error)),
        }
    }

    /// Cuts off what follows the entries that were read.
    fn cut(&self, row_bytes: usize) -> Result<()> {
        let index_bytes = self.n_entries.saturating_mul(ENTRY_BYTES) as u64;
        let rows_bytes = self.n_rows.saturating_mul(row_bytes as u64);
        for (name, file, len) in [
            (ROWS, &self.rows, rows_bytes),
            (INDEX, &self.index, index_bytes),
        ] {
            let path = self.dir.join(name);
            if file.metadata().at_path(&path)?.len() != len {
                file.set_len(len).at_path(&path)?;
            }
        }
        Ok(())
    }

    /// Rows first, then their entry.
    fn write(&mut self, rows: &[u8], key: &Key, entry: CacheEntry) -> Result<()> {
        self.rows.write_all(rows).at_path(self.dir.join(ROWS))?;
        let line = entry.line(key);
        self.index.write_all(&line).at_path(self.dir.join(INDEX))?;
        self.n_rows += u64::from(entry.n_rows);
        self.n_entries += 1;
        Ok(())
    }
}

impl TeacherCache {
    /// Opens a folder, or begins one; `rank` is the part that is written to.
    ///
    /// # Errors
    /// `Checkpoint` naming the file where the cache is damaged, or of another teacher or layout;
    /// `Io`.
    pub fn open(dir: &Path, header: CacheHeader, rank: usize) -> Result<Self> {
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
        let mut cache = TeacherCache {
            dir: dir.into(),
            header,
            parts: vec![Part::open(part_dir(dir, rank))?],
            entries: HashMap::new(),
            is_writer: false,
        };
        cache.refresh()?;
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

    /// Takes in what others have written since; the own part comes first.
    ///
    /// # Errors
    /// As [`TeacherCache::open`].
    pub fn refresh(&mut self) -> Result<()> {
        for dir in part_dirs(&self.dir)? {
            if !self.parts.iter().any(|part| part.dir == dir) {
                self.parts.push(Part::open(dir)?);
            }
        }
        let row_bytes = self.header.bytes_per_token();
        for (idx, part) in self.parts.iter_mut().enumerate() {
            for (key, entry) in part.unread(row_bytes)? {
                self.entries.entry(key).or_insert((idx, entry));
            }
        }
        Ok(())
    }

    /// A window's rows; none where it is not there.
    ///
    /// # Errors
    /// `Checkpoint` naming the file where the rows are not those that were written.
    pub fn read(&self, key: &Key, into: &mut CachedRows) -> Result<bool> {
        let Some((idx, entry)) = self.entries.get(key) else {
            return Ok(false);
        };
        let part = self.parts.get(*idx).present("a part of a cache")?;
        let path = part.dir.join(ROWS);
        let row_bytes = self.header.bytes_per_token();
        let mut bytes = vec![0; row_bytes * entry.n_rows as usize];
        let start = entry.first_row.saturating_mul(row_bytes as u64);
        part.rows.read_exact_at(&mut bytes, start).at_path(&path)?;
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
    pub fn append(&mut self, key: Key, rows: &CachedRows) -> Result<bool> {
        let row_bytes = self.header.bytes_per_token();
        if !self.is_writer {
            if !self.own()?.lock()? {
                return Ok(false);
            }
            // What another run has added since this one opened stays.
            self.refresh()?;
            self.own()?.cut(row_bytes)?;
            self.is_writer = true;
        }
        if self.holds(&key) {
            return Ok(true);
        }
        let bytes = self.header.encode(rows)?;
        let own = self.own()?;
        let entry = CacheEntry {
            first_row: own.n_rows,
            n_rows: (bytes.len() / row_bytes) as u32,
            crc: crc32c::crc32c(&bytes),
        };
        if let Err(error) = own.write(&bytes, &key, entry) {
            // What was written in part goes before anything else follows.
            self.is_writer = false;
            return Err(error);
        }
        self.entries.insert(key, (0, entry));
        Ok(true)
    }

    fn own(&mut self) -> Result<&mut Part> {
        self.parts.first_mut().present("a cache's own part")
    }

    /// Rows as they come back from the file.
    pub fn stored(&self, rows: &CachedRows) -> Result<CachedRows> {
        let mut stored = CachedRows::default();
        let bytes = self.header.encode(rows)?;
        for row in bytes.chunks_exact(self.header.bytes_per_token()) {
            self.header.decode(row, &mut stored);
        }
        Ok(stored)
    }

    /// Waits until all of it is on the disk.
    pub fn sync(&self) -> Result<()> {
        let Some(part) = self.parts.first() else {
            return Ok(());
        };
        part.rows.sync_data().at_path(part.dir.join(ROWS))?;
        part.index.sync_data().at_path(part.dir.join(INDEX))
    }
}

fn part_dir(dir: &Path, rank: usize) -> PathBuf {
    match rank {
        0 => dir.to_path_buf(),
        _ => dir.join(format!("{RANK}{rank}")),
    }
}

/// All parts, in the order of ranks.
fn part_dirs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut ranks = vec![0];
    for entry in fs::read_dir(dir).at_path(dir)?.flatten() {
        let name = entry.file_name();
        let rank = name.to_str().and_then(|name| name.strip_prefix(RANK));
        ranks.extend(rank.and_then(|rank| rank.parse::<usize>().ok()));
    }
    ranks.sort_unstable();
    Ok(ranks.into_iter().map(|rank| part_dir(dir, rank)).collect())
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
