//! Files of text as plain bytes: unpacked, and without a byte order mark.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use minitron_core::error::Result;
use minitron_core::files::{HEAD, mark_len};

/// Log of the largest window that zstd writes (`--long=31`): 2 GiB, of which only what is filled
/// takes memory.
const MOST_WINDOW: u32 = 31;

/// Endings of packed files.
const PACKED: [(&str, &str); 2] = [("gz", "gzip"), ("zst", "zstd")];

/// The text of a file, unpacked by what its bytes say (gzip of any number of members, zstd of any
/// number of frames).
///
/// # Errors
/// `Data` for another encoding or packing, a file whose ending says otherwise, and one that was
/// never fetched.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(super::open(path)?);
    let begin = head(&mut file).map_err(|e| super::read_error(path, e))?;
    let unpacked = begun_again(&begin, file);
    let mut text: Box<dyn BufRead> = match packing(&begin) {
        Some("gzip") => Box::new(BufReader::new(Members::new(unpacked))),
        Some("zstd") => Box::new(BufReader::new(
            Frames::new(unpacked).map_err(|e| super::read_error(path, e))?,
        )),
        Some(other) => {
            return Err(super::bad(
                path,
                format!("packed with {other}, which is not read; unpack it first"),
            ));
        }
        None => {
            check_ending(path, &begin)?;
            Box::new(unpacked)
        }
    };
    let begin = head(&mut text).map_err(|e| super::read_error(path, e))?;
    let n_marked = mark_len(&begin).map_err(|e| super::bad(path, e))?;
    super::check_fetched(path, &begin)?;
    Ok(Box::new(begun_again(
        begin.get(n_marked..).unwrap_or_default(),
        text,
    )))
}

/// The first bytes, however they come.
fn head(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(HEAD as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn begun_again<R: BufRead>(begin: &[u8], rest: R) -> io::Chain<Cursor<Vec<u8>>, R> {
    Cursor::new(begin.to_vec()).chain(rest)
}

/// Source: RFC 1952, RFC 8878, and the formats' own first bytes.
fn packing(begin: &[u8]) -> Option<&'static str> {
    match begin {
        [0x1F, 0x8B, 8, ..] => Some("gzip"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some("zstd"),
        [
            b'B',
            b'Z',
            b'h',
            b'1'..=b'9',
            b'1',
            b'A',
            b'Y',
            b'&',
            b'S',
            b'Y',
            ..,
        ] => Some("bzip2"),
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [0x04, 0x22, 0x4D, 0x18, ..] => Some("lz4"),
        [b'P', b'K', 3, 4, ..] => Some("zip"),
        _ => None,
    }
}

fn check_ending(path: &Path, begin: &[u8]) -> Result<()> {
    let ending = path
        .extension()
        .map(|ending| ending.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    match PACKED.iter().find(|(packed, _)| *packed == ending) {
        Some((_, format)) if begin.is_empty() => Err(super::bad(
            path,
            format!("expected {format} data, got an empty file; copy it again"),
        )),
        Some((_, format)) => {
            let message = format!(
                "expected {format} data, as its ending says, got other bytes; rename it, or copy \
                 it again"
            );
            Err(super::bad(path, message))
        }
        None => Ok(()),
    }
}

/// The members of a gzip file, one after another; zeros after the last one are padding, as for gzip
/// itself.
struct Members<R> {
    current: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(packed: R) -> Self {
        Members {
            current: Some(GzDecoder::new(packed)),
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.current {
            let n_read = member.read(bytes)?;
            if n_read > 0 || bytes.is_empty() {
                return Ok(n_read);
            }
            let Some(mut packed) = self.current.take().map(GzDecoder::into_inner) else {
                break;
            };
            match after_zeros(&mut packed)? {
                None => break,
                Some(0x1F) => self.current = Some(GzDecoder::new(packed)),
                Some(_) => {
                    let message = "other bytes follow the end of the gzip data; cut them off";
                    return Err(io::Error::new(ErrorKind::Unsupported, message));
                }
            }
        }
        Ok(0)
    }
}

/// The first byte that is not zero, which stays unread.
fn after_zeros(packed: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let bytes = packed.fill_buf()?;
        let n_zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let (found, is_over) = (bytes.get(n_zeros).copied(), bytes.is_empty());
        packed.consume(n_zeros);
        if found.is_some() || is_over {
            return Ok(found);
        }
    }
}

/// The frames of a zstd file; what its decoder cannot do is told apart from damage.
struct Frames<R: BufRead>(zstd::Decoder<'static, R>);

impl<R: BufRead> Frames<R> {
    fn new(packed: R) -> io::Result<Self> {
        let mut decoder = zstd::Decoder::with_buffer(packed)?;
        decoder.window_log_max(MOST_WINDOW)?;
        Ok(Frames(decoder))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes).map_err(unsupported)
    }
}

/// zstd's errors come as texts alone.
fn unsupported(error: io::Error) -> io::Error {
    let text = error.to_string();
    let message = match text.as_str() {
        text if text.contains("too much memory") => {
            "a zstd frame needs a window of more than 2 GiB; unpack it with `zstd -d \
             --memory=4096MB` first"
        }
        text if text.contains("not enough memory") => {
            "there is no memory for the window of a zstd frame; unpack it with `zstd -d --long=31` \
             first"
        }
        text if text.contains("Dictionary mismatch") => {
            "packed with a zstd dictionary, which is not here; unpack it with `zstd -d -D \
             DICTIONARY` first"
        }
        text if text.contains("Unsupported") || text.contains("not supported") => {
            "packed with a kind of zstd frame that is not read; unpack it with `zstd -d` first"
        }
        _ => return error,
    };
    io::Error::new(ErrorKind::Unsupported, message)
}
