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
    let n_shared = width(a_nv).min(width(b_nv));
    Ok((first_ids(a_nv, n_shared)?, first_ids(b_nv, n_shared)?))
}

fn first_ids(x_nv: &Tensor, n: i64) -> Result<Tensor> {
    if width(x_nv) == n {
        return Ok(x_nv.shallow_clone());
    }
    Ok(x_nv.f_narrow(-1, 0, n)?)
}

fn width(x: &Tensor) -> i64 {
    x.size().last().copied().unwrap_or(0)
}
