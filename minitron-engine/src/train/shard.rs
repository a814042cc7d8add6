//! Which part of every tensor a rank keeps the optimiser's state of (ZeRO stage 1, Rajbhandari et
//! al. 2020, arXiv 1910.02054). N ranks, n values of a tensor.

use tch::{Kind, Tensor};

use crate::ranks::Ranks;
use minitron_core::error::Result;

/// Rank r of N has values `r·⌈n/N⌉` up to `(r + 1)·⌈n/N⌉` of every tensor, as they lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    n_ranks: usize,
}

/// Values that travel at once.
const BUCKET: i64 = 6 << 20;

/// A tensor, and the rank's own values of it, one-dimensional.
pub(super) struct Divided {
    pub whole: Tensor,
    pub own: Tensor,
}

impl Shard {
    /// All of it.
    pub fn whole() -> Self {
        Shard {
            rank: 0,
            n_ranks: 1,
        }
    }

    /// A rank's own.
    pub fn of(ranks: Ranks) -> Self {
        Shard {
            rank: ranks.rank(),
            n_ranks: ranks.size(),
        }
    }

    /// Whether there is no other.
    pub fn is_whole(self) -> bool {
        self.n_ranks == 1
    }

    /// Which of how many.
    pub(super) fn place(self) -> (usize, usize) {
        (self.rank, self.n_ranks)
    }

    /// Values of the longest part of `n`.
    fn stride(self, n: i64) -> i64 {
        n.unsigned_abs().div_ceil(self.n_ranks as u64) as i64
    }

    /// Where a rank's values of `n` begin, and how many there are.
    fn range_of(self, rank: usize, n: i64) -> (i64, i64) {
        let stride = self.stride(n);
        let start = stride.saturating_mul(rank as i64).min(n);
        (start, stride.min(n - start))
    }

    /// The own values of a contiguous tensor, as a view; the tensor itself where there is no
    /// other.
    pub(super) fn own(self, tensor: &Tensor) -> Result<Tensor> {
        if self.is_whole() {
            return Ok(tensor.shallow_clone());
        }
        let (start, len) = self.range_of(self.rank, tensor.numel() as i64);
        Ok(tensor.f_view([-1i64])?.f_narrow(0, start, len)?)
    }

    /// Brings the values of all ranks together in every `whole`.
    ///
    /// # Errors
    /// `Ranks` where one does not take part.
    pub(super) fn unite(self, ranks: Ranks, tensors: &[Divided]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut rest = tensors;
        while let Some((first, _)) = rest.split_first() {
            let kind = first.whole.f_kind()?;
            let mut n_values = 0_i64;
            let n_fitting = rest
                .iter()
                .take_while(|next| {
                    n_values = n_values.saturating_add(next.whole.numel() as i64);
                    n_values <= BUCKET && next.whole.kind() == kind
                })
                .count();
            let (bucket, others) = rest.split_at(n_fitting.max(1));
            self.unite_bucket(ranks, bucket, kind)?;
            rest = others;
        }
        Ok(())
    }

    fn unite_bucket(self, ranks: Ranks, bucket: &[Divided], kind: Kind) -> Result<()> {
        let device = bucket
            .first()
            .map_or(tch::Device::Cpu, |first| first.whole.device());
        let strides = bucket
            .iter()
            .map(|divided| self.stride(divided.whole.numel() as i64));
        let len: i64 = strides.clone().sum();
        // Parts are padded to one length.
        let own = Tensor::f_zeros([len], (kind, device))?;
        let mut start = 0;
        for (divided, stride) in bucket.iter().zip(strides.clone()) {
            let n_own = divided.own.numel() as i64;
            own.f_narrow(0, start, n_own)?.f_copy_(&divided.own)?;
            start += stride;
        }
        let all = Tensor::f_empty([len.saturating_mul(self.n_ranks as i64)], (kind, device))?;
        ranks.all_gather(&all, &own)?;
        for rank in 0..self.n_ranks {
            let mut start = len.saturating_mul(rank as i64);
            for (divided, stride) in bucket.iter().zip(strides.clone()) {
                let flat = divided.whole.f_view([-1i64])?;
                let (to, n) = self.range_of(rank, flat.numel() as i64);
                flat.f_narrow(0, to, n)?
                    .f_copy_(&all.f_narrow(0, start, n)?)?;
                start += stride;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_cover_all() {
        for n in [0, 1, 2, 3, 7, 8, 100] {
            for n_ranks in [1, 2, 3, 5] {
                let mut end = 0;
                for rank in 0..n_ranks {
                    let (start, len) = Shard { rank, n_ranks }.range_of(rank, n);
                    assert!(start == end && len >= 0, "{n} {n_ranks}");
                    end += len;
                }
                assert_eq!(end, n);
            }
        }
    }
}
