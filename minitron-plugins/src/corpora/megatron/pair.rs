//! The two files of a pair, read side by side.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use minitron_core::contract::Document;
use minitron_core::error::{Error, IoContext as _, Result};

use super::super::{bad, open, read_error};

/// The index begins with this, a version, a code of the element type, and the numbers of sequences
/// and of bounds. The sequences' lengths (i32) and places in the other file (i64) follow, and the
/// bounds: the number of sequences before each document, and of all (i64). A mode for each sequence
/// (i8) may come last.
pub const MAGIC: &[u8] = b"MMIDIDX\0\0";
const HEADER: u64 = 34;

/// Width of an id, and how it is read.
type Element = (u64, fn(&[u8]) -> Option<u32>);

/// By the index's code; 6 and 7 are floats.
fn element(code: u8) -> Option<Element> {
    fn of<const N: usize, T: TryInto<u32>>(bytes: &[u8], read: fn([u8; N]) -> T) -> Option<u32> {
        read(bytes.try_into().ok()?).try_into().ok()
    }
    Some(match code {
        1 => (1, |bytes| of(bytes, u8::from_le_bytes)),
        2 => (1, |bytes| of(bytes, i8::from_le_bytes)),
        3 => (2, |bytes| of(bytes, i16::from_le_bytes)),
        4 => (4, |bytes| of(bytes, i32::from_le_bytes)),
        5 => (8, |bytes| of(bytes, i64::from_le_bytes)),
        8 => (2, |bytes| of(bytes, u16::from_le_bytes)),
        _ => return None,
    })
}

/// Both files; the index is never held whole.
pub struct IndexedFile<'a> {
    index: &'a Path,
    ids_path: PathBuf,
    element: Element,
    n_sequences: u64,
    n_documents: u64,
    lengths: BufReader<File>,
    places: BufReader<File>,
    bounds: BufReader<File>,
    ids: BufReader<File>,
    n_bytes: u64,
    /// Of the next document, and the number of sequences before it.
    document: u64,
    sequence: u64,
}

/// What an index says before its lists.
struct IndexHead {
    element: Element,
    n_sequences: u64,
    n_bounds: u64,
}

impl IndexHead {
    fn read(path: &Path, index: &mut BufReader<File>) -> Result<Self> {
        let magic = number::<9>(path, index);
        if magic.ok().is_none_or(|magic| magic != *MAGIC) {
            return Err(damaged(
                path,
                "expected an index of Megatron-LM, got a file that does not begin as one",
            ));
        }
        let version = u64::from_le_bytes(number(path, index)?);
        if version != 1 {
            let message = format!("expected version 1 of the index, got {version}");
            return Err(damaged(path, message));
        }
        let [code] = number(path, index)?;
        let Some(element) = element(code) else {
            let message =
                format!("expected ids of an integer type (code 1 to 5 or 8), got code {code}");
            return Err(damaged(path, message));
        };
        Ok(IndexHead {
            element,
            n_sequences: u64::from_le_bytes(number(path, index)?),
            n_bounds: u64::from_le_bytes(number(path, index)?),
        })
    }

    /// Refuses a file without bounds, or of another size than the lists need, with modes or
    /// without.
    fn check_size(&self, path: &Path, found: u64) -> Result<()> {
        let (n_sequences, n_bounds) = (self.n_sequences, self.n_bounds);
        let bare = size(n_sequences, n_bounds);
        let with_modes = bare.and_then(|bare| bare.checked_add(n_sequences));
        if bare != Some(found) && with_modes != Some(found) {
            let expected = bare.map_or("more than any file".to_owned(), |n| n.to_string());
            let what = format!(
                "{expected} bytes for {n_sequences} sequences and {n_bounds} bounds of documents"
            );
            return Err(damaged(path, format!("expected {what}, got {found}")));
        }
        if n_bounds == 0 {
            return Err(damaged(
                path,
                "expected a bound before the first document, got none",
            ));
        }
        Ok(())
    }
}

impl<'a> IndexedFile<'a> {
    pub fn open(path: &'a Path, ids_path: PathBuf) -> Result<Self> {
        let mut index = buffered(path)?;
        let head = IndexHead::read(path, &mut index)?;
        head.check_size(path, index.get_ref().metadata().at_path(path)?.len())?;
        let (lengths, places, bounds) = (index, buffered(path)?, buffered(path)?);
        let ids = buffered(&ids_path)?;
        let n_bytes = ids.get_ref().metadata().at_path(&ids_path)?.len();
        Ok(IndexedFile {
            index: path,
            ids_path,
            element: head.element,
            n_sequences: head.n_sequences,
            n_documents: head.n_bounds.saturating_sub(1),
            lengths,
            places,
            bounds,
            ids,
            n_bytes,
            document: 0,
            sequence: 0,
        })
    }

    /// Goes to a document.
    pub fn enter(&mut self, document: u64) -> Result<()> {
        self.document = document.min(self.n_documents);
        let path = self.index;
        let places = HEADER.saturating_add(self.n_sequences.saturating_mul(4));
        let bounds = places.saturating_add(self.n_sequences.saturating_mul(8));
        let bound = bounds.saturating_add(self.document.saturating_mul(8));
        self.bounds.seek(SeekFrom::Start(bound)).at_path(path)?;
        self.sequence = self.bound(0)?;
        if self.document == 0 && self.sequence != 0 {
            let found = self.sequence;
            let message = format!("expected the first document at sequence 0, got {found}");
            return Err(damaged(path, message));
        }
        let length = HEADER.saturating_add(self.sequence.saturating_mul(4));
        self.lengths.seek(SeekFrom::Start(length)).at_path(path)?;
        let place = places.saturating_add(self.sequence.saturating_mul(8));
        self.places.seek(SeekFrom::Start(place)).at_path(path)?;
        Ok(())
    }

    fn bound(&mut self, least: u64) -> Result<u64> {
        let bound = i64::from_le_bytes(number(self.index, &mut self.bounds)?);
        let (document, last) = (self.document, self.n_sequences);
        match u64::try_from(bound) {
            Ok(found) if (least..=last).contains(&found) => Ok(found),
            _ => Err(damaged(
                self.index,
                format!(
                    "expected document {document} to end at sequence {least} to {last}, got {bound}"
                ),
            )),
        }
    }

    /// # Errors
    /// `Data` where the index and the ids contradict each other.
    pub fn next_document(&mut self) -> Result<Option<Document>> {
        if self.document == self.n_documents {
            if self.sequence == self.n_sequences {
                return Ok(None);
            }
            let (found, all) = (self.sequence, self.n_sequences);
            return Err(damaged(
                self.index,
                format!("expected documents of {all} sequences, got {found}"),
            ));
        }
        let end = self.bound(self.sequence)?;
        let mut tokens = Vec::new();
        while self.sequence < end {
            self.read_sequence(&mut tokens)?;
            self.sequence = self.sequence.saturating_add(1);
        }
        self.document = self.document.saturating_add(1);
        Ok(Some(Document::Tokens(tokens)))
    }

    fn read_sequence(&mut self, tokens: &mut Vec<u32>) -> Result<()> {
        let length = i32::from_le_bytes(number(self.index, &mut self.lengths)?);
        let place = i64::from_le_bytes(number(self.index, &mut self.places)?);
        let (width, read) = self.element;
        let n_bytes = u64::try_from(length)
            .ok()
            .and_then(|length| length.checked_mul(width));
        let range = n_bytes.zip(u64::try_from(place).ok()).filter(|(n, place)| {
            // Sequences do not overlap, so no document is longer than the file.
            let n_held = (tokens.len() as u64).saturating_mul(width);
            place.checked_add(*n).is_some_and(|end| end <= self.n_bytes)
                && n_held.saturating_add(*n) <= self.n_bytes
        });
        let Some((n_bytes, place)) = range else {
            let (sequence, of) = (self.sequence, self.n_bytes);
            let found = format!("{length} ids at byte {place}");
            return Err(damaged(
                self.index,
                format!("expected sequence {sequence} within {of} bytes of ids, got {found}"),
            ));
        };
        if (tokens.len() as u64).saturating_add(u64::try_from(length).unwrap_or(0)) > MOST_IDS {
            let message = format!(
                "document {} has more than {MOST_IDS} ids, the most that are held at once",
                self.document
            );
            return Err(bad(self.index, format!("{message}; write it as several")));
        }
        let path = self.ids_path.as_path();
        let step = place
            .cast_signed()
            .saturating_sub(self.ids.stream_position().at_path(path)?.cast_signed());
        self.ids.seek_relative(step).at_path(path)?;
        let mut bytes = vec![0; usize::try_from(n_bytes).unwrap_or(usize::MAX)];
        self.ids
            .read_exact(&mut bytes)
            .map_err(|e| read_error(path, e))?;
        for bytes in bytes.chunks(usize::try_from(width).unwrap_or(1)) {
            let Some(id) = read(bytes) else {
                let (most, sequence) = (u32::MAX, self.sequence);
                return Err(damaged(
                    self.index,
                    format!("expected ids from 0 to {most}, got another in sequence {sequence}"),
                ));
            };
            tokens.push(id);
        }
        Ok(())
    }
}

/// Ids of a document at most: 1 GiB.
const MOST_IDS: u64 = 1 << 28;

/// Bytes of an index without modes.
fn size(n_sequences: u64, n_bounds: u64) -> Option<u64> {
    HEADER
        .checked_add(n_sequences.checked_mul(12)?)?
        .checked_add(n_bounds.checked_mul(8)?)
}

fn buffered(path: &Path) -> Result<BufReader<File>> {
    open(path).map(BufReader::new)
}

fn number<const N: usize>(path: &Path, file: &mut BufReader<File>) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)
        .map_err(|e| read_error(path, e))?;
    Ok(bytes)
}

fn damaged(path: &Path, message: impl Display) -> Error {
    bad(path, format!("{message}; copy the pair again"))
}
