//! Logits in row chunks, so that [tokens × vocabulary] never exists whole.

/// Bytes of one chunk's logits in f32: large enough for a fast matrix product, small enough to stay near the cache.
const CHUNK_BYTES: usize = 32 << 20;

/// Row ranges (start, length) over `n_rows` rows for a vocabulary.
pub fn row_chunks(n_rows: i64, vocab: usize) -> impl Iterator<Item = (i64, i64)> {
    let per_chunk = (CHUNK_BYTES / (4 * vocab.max(1))).clamp(16, 1 << 14);
    (0..n_rows).step_by(per_chunk).map(move |start| (start, (n_rows - start).min(per_chunk as i64)))
}
