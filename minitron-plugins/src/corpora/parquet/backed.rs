//! What a file announces and does not hold is found out here, before the `parquet` crate makes room
//! for it: an allocation that the system refuses ends the process.
//!
//! Source: the Apache Parquet format and Thrift's compact protocol.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Take};

use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::schema::types::ColumnDescriptor;

/// Bytes of a page that need no reason, and how often a page may be as long as it is compressed:
/// deflate's limit.
const PAGE: u64 = 64 << 20;
const FOLDS: u64 = 1032;
/// Values of a page whose lengths are unfolded all at once.
const MOST_VALUES: usize = 1 << 24;
/// Bytes that are unfolded at a time.
const BUFFER: usize = 4096;
/// Structures within structures; the format has seven.
const MOST_NESTED: u32 = 32;

type FileBytes<'a> = Take<BufReader<&'a File>>;

fn contradiction() -> ParquetError {
    ParquetError::General("it announces more than it holds".to_owned())
}

fn bytes(file: &File, start: u64, len: u64) -> Result<FileBytes<'_>> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start))?;
    Ok(reader.take(len))
}

/// Every count in the footer has bytes behind it. What is no footer at all is left to the crate,
/// which says so.
pub fn check_footer(file: &File) -> Result<()> {
    const TAIL: u64 = 8;
    let n_bytes = file.metadata()?.len();
    let Some(tail) = n_bytes.checked_sub(TAIL) else {
        return Ok(());
    };
    let mut len = [0; 4];
    bytes(file, tail, TAIL)?.read_exact(&mut len)?;
    let len = u64::from(u32::from_le_bytes(len));
    let Some(start) = tail.checked_sub(len) else {
        return Ok(());
    };
    structure(&mut bytes(file, start, len)?, 0)?
        .map(drop)
        .ok_or_else(contradiction)
}

/// The pages of a column in a row group lie within the file, and none unfolds to more than it can.
pub fn check_pages(file: &File, column: &ColumnChunkMetaData) -> Result<()> {
    let first = column
        .dictionary_page_offset()
        .unwrap_or(column.data_page_offset());
    let mut start = u64::try_from(first)?;
    let len = u64::try_from(column.compressed_size())?;
    let end = start.saturating_add(len);
    if end > file.metadata()?.len() {
        return Err(contradiction());
    }
    while start < end {
        let left = end.saturating_sub(start);
        let mut page = bytes(file, start, left)?;
        let [unfolded, stored] = structure(&mut page, 0)?.ok_or_else(contradiction)?;
        let (unfolded, stored) = (u64::try_from(unfolded)?, u64::try_from(stored)?);
        if stored > page.limit() || unfolded > PAGE.max(stored.saturating_mul(FOLDS)) {
            return Err(contradiction());
        }
        start = start
            .saturating_add(left.saturating_sub(page.limit()))
            .saturating_add(stored);
        unfold(page.take(stored), column.compression(), unfolded)?;
    }
    Ok(())
}

/// The crate unfolds all that is there, however long the header says that it is.
fn unfold(page: Take<FileBytes>, compression: Compression, n_expected: u64) -> Result<()> {
    let most = n_expected.saturating_add(1);
    let n_found = match compression {
        // Of a page of the newer kind the levels stand before what is compressed: damage is for the
        // crate to name.
        Compression::GZIP(_) => io::copy(
            &mut flate2::read::MultiGzDecoder::new(page).take(most),
            &mut io::sink(),
        )
        .unwrap_or(0),
        Compression::ZSTD(_) => {
            io::copy(&mut zstd::Decoder::new(page)?.take(most), &mut io::sink()).unwrap_or(0)
        }
        Compression::BROTLI(_) => {
            let unfolded = brotli_decompressor::Decompressor::new(page, BUFFER);
            io::copy(&mut unfolded.take(most), &mut io::sink()).unwrap_or(0)
        }
        // One of its three forms has no length of its own.
        Compression::LZ4 => io::copy(
            &mut lz4_flex::frame::FrameDecoder::new(page).take(most),
            &mut io::sink(),
        )
        .unwrap_or(0),
        _ => 0,
    };
    if n_found < most {
        Ok(())
    } else {
        Err(contradiction())
    }
}

/// Reads a structure to its end; none where it announces more than is left. Gives its own fields 2
/// and 3, which are the lengths of a page, unfolded and stored.
fn structure(from: &mut FileBytes, depth: u32) -> Result<Option<[i64; 2]>> {
    let (mut sizes, mut id) = ([0; 2], 0_i64);
    loop {
        let head = byte(from)?;
        let (delta, kind) = (head >> 4, head & 15);
        if kind == 0 {
            return Ok(Some(sizes));
        }
        id = if delta == 0 {
            zigzag(from)?
        } else {
            id.saturating_add(i64::from(delta))
        };
        match (kind, id) {
            (1 | 2, _) => {}
            (5, 2) => sizes[0] = zigzag(from)?,
            (5, 3) => sizes[1] = zigzag(from)?,
            _ if !value(from, kind, depth)? => return Ok(None),
            _ => {}
        }
    }
}

/// Reads a value; false where it announces more than is left.
fn value(from: &mut FileBytes, kind: u8, depth: u32) -> Result<bool> {
    match kind {
        1..=3 => drop(byte(from)?),
        4..=6 => drop(zigzag(from)?),
        7 => return skip(from, 8),
        8 => {
            let len = varint(from)?;
            return skip(from, len);
        }
        9 | 10 => {
            let head = byte(from)?;
            let n = if head >> 4 == 15 {
                varint(from)?
            } else {
                u64::from(head >> 4)
            };
            return values(from, n, &[head & 15], depth);
        }
        11 => {
            let n = varint(from)?;
            let kinds = if n == 0 { 0 } else { byte(from)? };
            return values(from, n, &[kinds >> 4, kinds & 15], depth);
        }
        12 if depth < MOST_NESTED => return Ok(structure(from, depth.saturating_add(1))?.is_some()),
        _ => return Ok(false),
    }
    Ok(true)
}

/// None of them takes less than a byte.
fn values(from: &mut FileBytes, n: u64, kinds: &[u8], depth: u32) -> Result<bool> {
    if n > from.limit() || depth >= MOST_NESTED {
        return Ok(false);
    }
    for kind in (0..n).flat_map(|_| kinds) {
        if !value(from, *kind, depth.saturating_add(1))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn skip(from: &mut FileBytes, len: u64) -> Result<bool> {
    Ok(len <= from.limit() && io::copy(&mut from.take(len), &mut io::sink())? == len)
}

fn byte(from: &mut impl Read) -> Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn varint(from: &mut impl Read) -> Result<u64> {
    let (mut number, mut shift) = (0_u64, 0_u32);
    loop {
        let byte = byte(from)?;
        number |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        shift = shift.saturating_add(7);
        match byte {
            0..128 => return Ok(number),
            _ if shift > 63 => return Err(contradiction()),
            _ => {}
        }
    }
}

fn zigzag(from: &mut impl Read) -> Result<i64> {
    let number = varint(from)?;
    Ok((number >> 1).cast_signed() ^ (number & 1).cast_signed().wrapping_neg())
}

/// Pages whose numbers of values are backed by their bytes.
pub struct Backed {
    pages: Box<dyn PageReader>,
    /// Stored bytes of a value in a dictionary, at least.
    value_len: usize,
    /// Runs of levels that stand before values: one where they may be null, one more where they are
    /// in lists.
    n_levels: usize,
}

impl Backed {
    /// The pages of a column.
    pub fn new(pages: Box<dyn PageReader>, column: &ColumnDescriptor) -> Self {
        let value_len = match column.physical_type() {
            Type::FIXED_LEN_BYTE_ARRAY => usize::try_from(column.type_length()).unwrap_or(0).max(1),
            // A text has four bytes of length.
            _ => 4,
        };
        let n_levels =
            usize::from(column.max_def_level() > 0) + usize::from(column.max_rep_level() > 0);
        Backed {
            pages,
            value_len,
            n_levels,
        }
    }

    fn check(&self, page: &Page) -> Result<()> {
        let is_backed = match page {
            Page::DictionaryPage {
                buf, num_values, ..
            } => *num_values as usize <= buf.len() / self.value_len,
            Page::DataPage { buf, encoding, .. } => {
                let mut start = 0_usize;
                for _ in 0..self.n_levels {
                    let len = buf.get(start..).and_then(|bytes| bytes.first_chunk());
                    start = start
                        .saturating_add(len.map_or(0, |len| u32::from_le_bytes(*len) as usize + 4));
                }
                are_lengths_backed(buf.get(start..).unwrap_or_default(), *encoding)
            }
            Page::DataPageV2 {
                buf,
                encoding,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => {
                let start =
                    (*def_levels_byte_len as usize).saturating_add(*rep_levels_byte_len as usize);
                are_lengths_backed(buf.get(start..).unwrap_or_default(), *encoding)
            }
        };
        if is_backed {
            Ok(())
        } else {
            Err(contradiction())
        }
    }
}

/// Lengths that are stored as differences are unfolded into as many as their head says.
fn are_lengths_backed(values: &[u8], encoding: Encoding) -> bool {
    let n_runs = match encoding {
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        // What each shares with the one before, then how long the rest is.
        Encoding::DELTA_BYTE_ARRAY => 2,
        _ => 0,
    };
    let mut rest = values;
    (0..n_runs).all(|_| differences(&mut rest).is_ok_and(|n| n <= MOST_VALUES))
}

/// A varint as a size.
fn read_count(rest: &mut &[u8]) -> Result<usize> {
    Ok(usize::try_from(varint(rest)?)?)
}

/// Passes a run of differences, and says how many numbers they are.
fn differences(rest: &mut &[u8]) -> Result<usize> {
    let (block, n_parts, n) = (read_count(rest)?, read_count(rest)?, read_count(rest)?);
    zigzag(rest)?;
    let per_part = block.checked_div(n_parts).ok_or_else(contradiction)?;
    let mut left = n.saturating_sub(1);
    while left > 0 {
        zigzag(rest)?;
        let (widths, values) = rest.split_at_checked(n_parts).ok_or_else(contradiction)?;
        *rest = values;
        for width in widths {
            if left == 0 {
                break;
            }
            let n_bytes = per_part.saturating_mul(usize::from(*width)) / 8;
            *rest = rest.get(n_bytes..).ok_or_else(contradiction)?;
            left = left.saturating_sub(per_part);
        }
    }
    Ok(n)
}

impl PageReader for Backed {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.as_ref().map_or(Ok(()), |page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for Backed {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}
