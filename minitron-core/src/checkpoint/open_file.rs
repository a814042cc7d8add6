//! A safetensors file that is open, and rows of its tensors where they lie.
//!
//! Files are read, not mapped: one that another process cuts off meanwhile is an error here, and
//! the end of the process there.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::tensor::Metadata;

use super::finite::first_not_finite;
use super::source::TensorInfo;
use crate::error::{Error, IoContext, Result};
use crate::files::open_regular;

/// Rows that are looked through or thinned out go in pieces that stay in the processor's cache.
pub const PIECE_BYTES: usize = 1 << 20;

/// Longest header, as the format's own implementation has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes before the header, which say how long it is.
const LEN_BYTES: u64 = 8;

/// A file as it was when its header was read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub path: PathBuf,
    file: File,
    n_bytes: u64,
    modified: Option<SystemTime>,
}

/// A tensor as a file's header describes it.
#[derive(Debug)]
pub(super) struct StoredTensor {
    pub file: usize,
    pub info: TensorInfo,
    pub start: u64,
    pub n_bytes: u64,
    pub is_weight: bool,
}

/// Rows of a tensor in its file, not yet read.
pub(super) struct Stored<'a> {
    pub name: &'a str,
    pub file: &'a OpenFile,
    pub entry: &'a StoredTensor,
    pub first_row: usize,
    pub start: u64,
    pub n_bytes: usize,
}

impl OpenFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).at_path(path)?;
        let facts = file.metadata().at_path(path)?;
        Ok(OpenFile {
            path: path.to_path_buf(),
            file,
            n_bytes: facts.len(),
            modified: facts.modified().ok(),
        })
    }

    /// Where the data begins, and what is in it: without gaps or overlaps, from there to the end of
    /// the file.
    pub fn header(&self) -> Result<(u64, Metadata)> {
        let mut len = [0; LEN_BYTES as usize];
        if self.n_bytes < LEN_BYTES {
            return Err(self.not_whole(format!("{} bytes", self.n_bytes)));
        }
        self.read(&mut len, 0)?;
        let len = u64::from_le_bytes(len);
        if len > MAX_HEADER_BYTES || len > self.n_bytes.saturating_sub(LEN_BYTES) {
            return Err(self.not_whole("its first bytes announce a header longer than the file"));
        }
        let mut header = vec![0; len as usize];
        self.read(&mut header, LEN_BYTES)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| self.not_whole(e))?;
        let start = len.saturating_add(LEN_BYTES);
        let expected = metadata.data_len() as u64;
        let found = self.n_bytes.saturating_sub(start);
        if expected != found {
            return Err(self.not_whole(format!(
                "its header announces {expected} bytes of data, {found} follow"
            )));
        }
        Ok((start, metadata))
    }

    /// Reads exactly so many bytes of a file that is still as it was.
    pub fn read(&self, bytes: &mut [u8], start: u64) -> Result<()> {
        match self.file.read_exact_at(bytes, start) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(self.changed()),
            done => done.at_path(&self.path)?,
        }
        let facts = self.file.metadata().at_path(&self.path)?;
        if facts.len() == self.n_bytes && facts.modified().ok() == self.modified {
            Ok(())
        } else {
            Err(self.changed())
        }
    }

    fn not_whole(&self, why: impl std::fmt::Display) -> Error {
        let message = format!(
            "not a whole safetensors file ({why}); it may be cut off: fetch or copy it again"
        );
        Error::checkpoint(&self.path, message)
    }

    fn changed(&self) -> Error {
        let message = "changed while it was read; wait until it is written, then start again";
        Error::checkpoint(&self.path, message)
    }
}

impl Stored<'_> {
    /// Reads them, a weight in pieces that are looked through while the processor's cache holds
    /// them.
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        if !self.entry.is_weight {
            return self.file.read(bytes, self.start);
        }
        let mut start = self.start;
        for piece in bytes.chunks_mut(PIECE_BYTES) {
            self.file.read(piece, start)?;
            if let Some(at) = first_not_finite(piece, self.entry.info.dtype) {
                let width = self.entry.info.dtype.bitsize() as u64 / 8;
                return Err(self.not_finite((start - self.start) / width.max(1) + at as u64));
            }
            start += piece.len() as u64;
        }
        Ok(())
    }

    /// Of the element that comes so many after the first read.
    fn not_finite(&self, n_before: u64) -> Error {
        let shape = &self.entry.info.shape;
        let row_len: u64 = shape.iter().skip(1).map(|&side| side as u64).product();
        let mut rest = n_before.saturating_add(row_len.saturating_mul(self.first_row as u64));
        let mut place: Vec<u64> = shape
            .iter()
            .rev()
            .map(|&side| {
                let position = rest % side.max(1) as u64;
                rest /= side.max(1) as u64;
                position
            })
            .collect();
        place.reverse();
        let message = format!(
            "tensor `{}` is NaN or infinite at {place:?}; weights must be finite: fetch or copy \
             the file again, or take an earlier state of the training that wrote it",
            self.name
        );
        Error::checkpoint(&self.file.path, message)
    }
}
