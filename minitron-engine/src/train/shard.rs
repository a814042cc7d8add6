//! Which values a rank keeps of every tensor (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054). N
//! ranks, n values of a tensor.

use tch::{Kind, Tensor};

use crate::ranks::Ranks;
use minitron_core::error::Result;

/// One of N ranks that divide values among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    n_ranks: usize,
}

/// How the values of one tensor are divided: as they lie in memory, each rank's follow those of the
/// one before it. Tensors that are divided as one lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Values of the tensor.
    n: i64,
    /// Values before it.
    start: i64,
    /// Values of all that each rank keeps.
    stride: i64,
    shard: Shard,
}

/// Tensors that lie one after the other begin at multiples of so many values: products of matrices
/// are faster there, and the same to the last bit.
const ALIGNED: i64 = 32;
/// Values that travel at once.
const BUCKET: i64 = 6 << 20;

/// A tensor, and the rank's own values of it, one-dimensional.
pub(super) struct Divided {
    pub whole: Tensor,
    pub own: Tensor,
    pub cut: Cut,
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

    /// A tensor that is divided by itself.
    pub(super) fn cut(self, tensor: &Tensor) -> Cut {
        let n = tensor.numel() as i64;
        Cut {
            n,
            start: 0,
            stride: self.stride(n),
            shard: self,
        }
    }

    /// Tensors of so many values that are divided as one.
    pub(super) fn cuts(self, sizes: &[i64]) -> Vec<Cut> {
        let stride = self.stride(sizes.iter().copied().map(aligned).sum());
        let mut start = 0;
        let mut cuts = Vec::with_capacity(sizes.len());
        for &n in sizes {
            cuts.push(Cut {
                n,
                start,
                stride,
                shard: self,
            });
            start += aligned(n);
        }
        cuts
    }

    /// ⌈n/N⌉: what each rank keeps of so many, the last ones of nothing.
    fn stride(self, n: i64) -> i64 {
        n.unsigned_abs().div_ceil(self.n_ranks as u64) as i64
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
        let longest: Vec<i64> = bucket.iter().map(|it| it.cut.longest()).collect();
        let len: i64 = longest.iter().sum();
        // Parts are padded to one length.
        let own = Tensor::f_zeros([len], (kind, device))?;
        let mut start = 0;
        for (divided, longest) in bucket.iter().zip(&longest) {
            let n_own = divided.own.numel() as i64;
            own.f_narrow(0, start, n_own)?.f_copy_(&divided.own)?;
            start += longest;
        }
        let all = Tensor::f_empty([len.saturating_mul(self.n_ranks as i64)], (kind, device))?;
        ranks.all_gather(&all, &own)?;
        for rank in 0..self.n_ranks {
            let mut start = len.saturating_mul(rank as i64);
            for (divided, longest) in bucket.iter().zip(&longest) {
                let flat = divided.whole.f_view([-1i64])?;
                let (to, n) = divided.cut.range_of(rank);
                flat.f_narrow(0, to, n)?
                    .f_copy_(&all.f_narrow(0, start, n)?)?;
                start += longest;
            }
        }
        Ok(())
    }
}

fn aligned(n: i64) -> i64 {
    (n + ALIGNED - 1) / ALIGNED * ALIGNED
}

impl Cut {
    /// Values of all that the rank keeps.
    pub(super) fn stride(self) -> i64 {
        self.stride
    }

    /// Where a rank's values of the tensor begin, and how many there are.
    fn range_of(self, rank: usize) -> (i64, i64) {
        let first = self.stride.saturating_mul(rank as i64) - self.start;
        let begin = first.clamp(0, self.n);
        let end = first.saturating_add(self.stride).clamp(0, self.n);
        (begin, end - begin)
    }

    /// Where the rank's own begin among all that it keeps, and how many there are.
    pub(super) fn kept(self) -> (i64, i64) {
        let rank = self.shard.rank;
        let (begin, n) = self.range_of(rank);
        let kept = (self.start + begin) - self.stride.saturating_mul(rank as i64);
        // Of nothing, any place serves.
        (if n == 0 { 0 } else { kept }, n)
    }

    /// Most values that a rank keeps of the tensor.
    fn longest(self) -> i64 {
        let lens = (0..self.shard.n_ranks).map(|rank| self.range_of(rank).1);
        lens.max().unwrap_or(0)
    }

    /// Values of all ranks together, those of nothing among them.
    pub(super) fn all(self) -> i64 {
        self.stride.saturating_mul(self.shard.n_ranks as i64)
    }

    /// Where the tensor lies among those that are divided as one.
    pub(super) fn place(self) -> (i64, i64) {
        (self.start, self.n)
    }

    /// The own values of the tensor, contiguous, as a view; the tensor itself where there is no
    /// other rank.
    pub(super) fn own(self, tensor: &Tensor) -> Result<Tensor> {
        if self.shard.is_whole() {
            return Ok(tensor.shallow_clone());
        }
        let (start, len) = self.range_of(self.shard.rank);
        Ok(tensor.f_view([-1i64])?.f_narrow(0, start, len)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_cover_all() {
        let lists = [
            vec![0],
            vec![1],
            vec![7],
            vec![3, 1, 8],
            vec![100, 0, 2, 31],
        ];
        for (sizes, n_ranks) in lists.iter().flat_map(|it| [1, 2, 3, 5].map(|n| (it, n))) {
            let of = |rank| Shard { rank, n_ranks }.cuts(sizes);
            let mut kept = vec![0; n_ranks];
            for (idx, &n) in sizes.iter().enumerate() {
                let mut end = 0;
                for (rank, kept) in kept.iter_mut().enumerate() {
                    let cut = of(rank)[idx];
                    let ((start, len), (place, n_kept)) = (cut.range_of(rank), cut.kept());
                    assert!(len == n_kept && len <= cut.longest(), "{sizes:?} {n_ranks}");
                    if len > 0 {
                        assert!(start == end && place >= *kept, "{sizes:?} {n_ranks}");
                        assert!(place + len <= cut.stride, "{sizes:?} {n_ranks}");
                        (end, *kept) = (end + len, place + len);
                    }
                }
                assert_eq!(end, n);
            }
        }
    }
}
