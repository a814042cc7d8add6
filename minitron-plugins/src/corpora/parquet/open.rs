//! Opens a Parquet file, and says what is no such file, or one that is not read.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use minitron_core::error::{Error, IoContext as _, Result};
use minitron_core::files::HEAD;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::backed;
use crate::corpora::{self, bad, check_fetched, read_error};

/// A file and its reader.
///
/// # Errors
/// `Data` for what is no Parquet file, or a damaged one.
pub(super) fn open(path: &Path) -> Result<(File, SerializedFileReader<File>)> {
    let mut file = corpora::open(path)?;
    check_kind(&mut file, path)?;
    let reader = guarded(|| reader_of(&file)).map_err(|e| unreadable(path, &e))?;
    let groups = reader.metadata().row_groups();
    let mut columns = groups.iter().flat_map(|group| group.columns());
    if let Some(column) = columns.find(|column| is_foreign(column.compression())) {
        let codec = column.compression();
        let message =
            format!("compressed with {codec}, which is not read; write it again with zstd");
        return Err(bad(path, message));
    }
    Ok((file, reader))
}

fn reader_of(file: &File) -> Result<SerializedFileReader<File>, ParquetError> {
    backed::check_footer(file)?;
    SerializedFileReader::new(file.try_clone()?)
}

/// The one codec that no crate here unfolds.
fn is_foreign(codec: Compression) -> bool {
    matches!(codec, Compression::LZO)
}

/// Refuses by name what is whole, but something else.
fn check_kind(file: &mut File, path: &Path) -> Result<()> {
    let mut begin = Vec::new();
    (&mut *file)
        .take(HEAD as u64)
        .read_to_end(&mut begin)
        .map_err(|e| read_error(path, e))?;
    check_fetched(path, &begin)?;
    let mut end = [0; 4];
    let is_long = file.metadata().at_path(path)?.len() >= 8;
    if is_long {
        file.seek(SeekFrom::End(-4)).at_path(path)?;
        file.read_exact(&mut end).map_err(|e| read_error(path, e))?;
    }
    match (begin.as_slice(), &end) {
        ([b'P', b'A', b'R', b'1', ..], b"PAR1") => Ok(()),
        (_, b"PARE") => Err(bad(
            path,
            "an encrypted Parquet file, which is not read; write it again without",
        )),
        ([b'P', b'A', b'R', b'1', ..], _) => Err(bad(
            path,
            "expected a Parquet file, got one without its end; copy it again",
        )),
        (begin, _) => {
            let found = match begin {
                [b'A', b'R', b'R', b'O', b'W', b'1', ..] => "an Arrow file",
                [0x1F, 0x8B, ..] => "a gzip file; unpack it",
                [0x28, 0xB5, 0x2F, 0xFD, ..] => "a zstd file; unpack it",
                [] => "an empty file",
                [b'{' | b'[', ..] => "JSON; name it .jsonl or .json",
                _ => "other bytes; check the path, or copy it again",
            };
            Err(bad(path, format!("expected a Parquet file, got {found}")))
        }
    }
}

/// What the `parquet` crate refuses: what it does not know is not damaged.
pub(super) fn unreadable(path: &Path, error: &ParquetError) -> Error {
    const MOST: usize = 200;
    let text: String = error.to_string().chars().take(MOST).collect();
    match error {
        ParquetError::NYI(_) => bad(
            path,
            format!("{text}: not read; write it again with plain encodings"),
        ),
        _ => bad(
            path,
            format!("expected a Parquet file, got a damaged one ({text}); copy it again"),
        ),
    }
}

/// The `parquet` crate answers some damaged files with a panic, which must not leave this file.
pub(super) fn guarded<T>(
    work: impl FnOnce() -> Result<T, ParquetError>,
) -> Result<T, ParquetError> {
    // What was half changed is not read again: an error ends the documents.
    panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ParquetError::General("it contradicts itself".to_owned())))
}
