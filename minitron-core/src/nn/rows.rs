//! Logits in row chunks, so that [tokens × vocabulary] never exists whole. N rows, V vocab.

use tch::Tensor;

use crate::error::Result;

/// Bytes of one chunk's logits in f32: large enough for a fast matrix product, small enough to stay
/// near the cache.
const CHUNK_BYTES: usize = 32 << 20;

/// Row ranges (start, length) over `n_rows` rows for a vocabulary.
pub fn row_chunks(n_rows: i64, vocab: usize) -> impl Iterator<Item = (i64, i64)> {
    let per_chunk = (CHUNK_BYTES / (4 * vocab.max(1))).clamp(16, 1 << 14);
    (0..n_rows)
        .step_by(per_chunk)
        .map(move |start| (start, (n_rows - start).min(per_chunk as i64)))
}

/// Logits of two models [N, V] over the token ids that both have: those of the smaller table, where
/// the other has rows beyond (padding to a round number, for most). A softmax of either is then
/// over these ids alone.
pub fn over_shared_ids(a_nv: &Tensor, b_nv: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = |x: &Tensor| x.size().last().copied().unwrap_or(0);
    let n_shared = width(a_nv).min(width(b_nv));
    let shared = |x: &Tensor| match width(x) == n_shared {
        true => Ok(x.shallow_clone()),
        false => x.f_narrow(-1, 0, n_shared),
    };
    Ok((shared(a_nv)?, shared(b_nv)?))
}
