//! Reading and writing at the same time: one thread fills a chunk of a file while another writes
//! the one before.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::source::{TensorInfo, TensorSource};
use crate::error::{Error, IoContext, Result};
use crate::output::{BLOCK, aligned_start};

/// A tensor of a file: its name, what it is, and how many bytes it takes.
pub(super) type HeaderEntry<'a> = (&'a String, TensorInfo, u64);

/// Bytes of the whole file.
pub(super) fn n_bytes_of(header: &[u8], entries: &[HeaderEntry]) -> u64 {
    entries
        .iter()
        .fold(header.len() as u64, |n, (.., n_bytes)| {
            n.saturating_add(*n_bytes)
        })
}

/// Reads on this thread and writes on another. The outer result is the reader's, the inner one the
/// writer's.
pub(super) fn stream(
    out: impl Write + Send,
    header: &[u8],
    source: &dyn TensorSource,
    entries: &[HeaderEntry],
    chunk_bytes: usize,
) -> Result<std::io::Result<()>> {
    let (full, to_write) = sync_channel(0);
    let (written, empty) = sync_channel(1);
    let room = chunk_bytes.min(n_bytes_of(header, entries) as usize);
    let _ = written.send(Chunk::with_room(room));
    let chunk = Chunk::with_room(room);
    std::thread::scope(|scope| {
        let writer = std::thread::Builder::new()
            .name("write".into())
            .spawn_scoped(scope, move || write_chunks(out, &to_write, &written))
            .at_path("a thread to write")?;
        let read = Filler {
            full,
            empty,
            chunk,
            chunk_bytes,
        }
        .fill(header, source, entries);
        let wrote = writer
            .join()
            .map_err(|_| Error::Internal("the thread that writes ended early".into()))?;
        read.map(|()| wrote)
    })
}

/// Writes what arrives until nothing more does; an error ends it, which the reader notices.
fn write_chunks(
    mut out: impl Write,
    full: &Receiver<Chunk>,
    written: &SyncSender<Chunk>,
) -> std::io::Result<()> {
    for chunk in full {
        let _span = tracing::debug_span!("write chunk", n_bytes = chunk.content().len()).entered();
        out.write_all(chunk.content())?;
        // After the last chunk nobody takes the buffer back.
        let _ = written.send(chunk);
    }
    out.flush()
}

/// Consecutive bytes of the file, aligned in memory as direct writes want them.
struct Chunk {
    bytes: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// Of its full size at once: a buffer that grows is there twice meanwhile.
    fn with_room(n_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(n_bytes.saturating_add(2 * BLOCK));
        let start = aligned_start(&bytes);
        bytes.resize(start, 0);
        Chunk { bytes, start }
    }

    fn content(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// What does not fill a whole block at the end moves to the front of `next`, which is emptied
    /// first.
    fn split_into(&mut self, next: &mut Chunk) {
        next.bytes.truncate(next.start);
        let whole = self.content().len() / BLOCK * BLOCK;
        if whole > 0 {
            next.bytes
                .extend_from_slice(self.content().get(whole..).unwrap_or_default());
            self.bytes.truncate(self.start + whole);
        }
    }
}

/// The reader's side: the chunk being filled, where full ones go and where written ones come back.
struct Filler {
    full: SyncSender<Chunk>,
    empty: Receiver<Chunk>,
    chunk: Chunk,
    chunk_bytes: usize,
}

impl Filler {
    /// Reads all tensors, one after the other; stops where the writer did.
    fn fill(
        mut self,
        header: &[u8],
        source: &dyn TensorSource,
        entries: &[HeaderEntry],
    ) -> Result<()> {
        self.chunk.bytes.extend_from_slice(header);
        for (name, info, n_bytes) in entries {
            let n_rows = info.shape.first().copied().unwrap_or(1);
            let row_bytes = *n_bytes as usize / n_rows.max(1);
            let mut row = 0;
            while row < n_rows {
                if !self.make_room(row_bytes) {
                    return Ok(());
                }
                let room = self.chunk_bytes.saturating_sub(self.chunk.content().len());
                let n = (room / row_bytes.max(1)).clamp(1, n_rows - row);
                let bytes = &mut self.chunk.bytes;
                let expected = bytes.len() + n * row_bytes;
                bytes.reserve_exact(n * row_bytes);
                source.append_rows(name, row..row + n, bytes)?;
                if bytes.len() != expected {
                    let message = format!(
                        "tensor `{name}`: {expected} bytes announced, {} read",
                        bytes.len()
                    );
                    return Err(Error::Internal(message));
                }
                row += n;
            }
        }
        // Where the writer has ended, its own error says why.
        let _ = self.full.send(self.chunk);
        Ok(())
    }

    /// Hands the chunk on where a row does not fit any more; false where the writer has ended.
    fn make_room(&mut self, row_bytes: usize) -> bool {
        let n_bytes = self.chunk.content().len();
        if n_bytes == 0 || n_bytes.saturating_add(row_bytes) <= self.chunk_bytes {
            return true;
        }
        let Ok(mut next) = self.empty.recv() else {
            return false;
        };
        self.chunk.split_into(&mut next);
        self.full
            .send(std::mem::replace(&mut self.chunk, next))
            .is_ok()
    }
}
