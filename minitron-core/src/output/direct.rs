//! Writes large files past the page cache: copying into fresh pages costs more than the disk does,
//! and they would push out the pages still to be read.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What direct writes must be a multiple of, in memory and in the file; no common disk has larger
/// blocks.
pub const BLOCK: usize = 4096;

/// Files below this stay in the page cache, where the next stage finds them.
const LARGE_BYTES: u64 = 1 << 30;

/// A new file, written front to back: whole aligned blocks directly, where the file is large and
/// the file system can, all else through the page cache.
pub struct DirectFile {
    cached: File,
    direct: Option<File>,
    n_written: u64,
}

impl DirectFile {
    /// Creates the file, or empties it.
    pub fn create(path: &Path, n_bytes: u64) -> io::Result<Self> {
        let cached = File::create(path)?;
        Ok(DirectFile {
            cached,
            direct: if n_bytes < LARGE_BYTES {
                None
            } else {
                open_direct(path)
            },
            n_written: 0,
        })
    }

    /// Waits until all of it is on the disk.
    pub fn sync_all(&self) -> io::Result<()> {
        self.cached.sync_all()
    }
}

/// `None` where the file system refuses, as those in memory do.
fn open_direct(path: &Path) -> Option<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .ok()
}

/// How far into `bytes` the next address lies that a direct write may start at.
pub fn aligned_start(bytes: &[u8]) -> usize {
    bytes.as_ptr().align_offset(BLOCK).min(BLOCK)
}

impl Write for DirectFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let whole = bytes.len() / BLOCK * BLOCK;
        let aligned = aligned_start(bytes) == 0 && self.n_written.is_multiple_of(BLOCK as u64);
        if let (Some(direct), Some(blocks), true) =
            (&self.direct, bytes.get(..whole), aligned && whole > 0)
        {
            match direct.write_at(blocks, self.n_written) {
                // Some file systems open for direct writes and then want larger blocks.
                Err(error) if error.kind() == ErrorKind::InvalidInput => self.direct = None,
                n => {
                    let n = n?;
                    self.n_written += n as u64;
                    return Ok(n);
                }
            }
        }
        let n = self.cached.write_at(bytes, self.n_written)?;
        self.n_written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_any_pieces_directly_or_not_is_what_the_file_holds() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes: Vec<u8> = (0..5 * BLOCK + 77).map(|i| (i % 251) as u8).collect();
        for (n_announced, piece) in [
            (0, BLOCK),
            (LARGE_BYTES, BLOCK),
            (LARGE_BYTES, 1000),
            (LARGE_BYTES, 3 * BLOCK),
        ] {
            let path = dir.path().join("file");
            let mut output = DirectFile::create(&path, n_announced).unwrap();
            for piece in bytes.chunks(piece) {
                let mut buffer = Vec::with_capacity(piece.len() + BLOCK);
                let start = aligned_start(&buffer);
                buffer.resize(start, 0);
                buffer.extend_from_slice(piece);
                output.write_all(&buffer[start..]).unwrap();
            }
            output.sync_all().unwrap();
            assert!(
                std::fs::read(&path).unwrap() == bytes,
                "{n_announced} {piece}"
            );
        }
    }
}
