//! Logits in row chunks, so that [tokens × vocabulary] never exists whole. N rows, V vocab.

use tch::{Device, Tensor};

use crate::error::Result;

/// Bytes of one chunk's logits in f32 on a CPU: large enough for a fast matrix product, small
/// enough to stay near the cache.
const CPU_CHUNK_BYTES: usize = 32 << 20;
/// The same on a device that a product of a few rows leaves idle.
const GPU_CHUNK_BYTES: usize = 256 << 20;

/// Row ranges (start, length) over `n_rows` rows for a vocabulary, where the logits are computed.
pub fn row_chunks(n_rows: i64, vocab: usize, device: Device) -> impl Iterator<Item = (i64, i64)> {
    let (n_bytes, most) = match device {
        Device::Cpu => (CPU_CHUNK_BYTES, 1 << 14),
        _ => (GPU_CHUNK_BYTES, 1 << 17),
    };
    let per_chunk = (n_bytes / (4 * vocab.max(1))).clamp(16, most);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_and_are_as_large_as_their_device_likes() {
        for (device, rows) in [(Device::Cpu, 64), (Device::Cuda(0), 512)] {
            let chunks: Vec<(i64, i64)> = row_chunks(1000, 1 << 17, device).collect();
            assert_eq!(chunks[0], (0, rows));
            assert_eq!(chunks.iter().map(|(_, len)| len).sum::<i64>(), 1000);
            assert!(
                chunks
                    .windows(2)
                    .all(|pair| pair[0].0 + pair[0].1 == pair[1].0)
            );
        }
        assert_eq!(row_chunks(3, 1 << 30, Device::Cpu).count(), 1);
        assert_eq!(row_chunks(0, 8, Device::Cpu).count(), 0);
    }
}
