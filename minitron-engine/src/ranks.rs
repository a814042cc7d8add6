//! Several processes at one job: each knows who it is, and they agree.

use std::sync::atomic::{AtomicU64, Ordering};

use minitron_comm::{CommError, Communicator, ReduceOp, Solo, Store, Work};
use serde_json::Value;
use tch::Tensor;

use crate::difference::differing_keys;
use minitron_core::calibrate::World;
use minitron_core::error::{Error, Present, Result};

/// What a job knows of the processes that are at it together. All of them call the same functions
/// in the same order. A process has one communicator, as long as it lives.
#[derive(Debug, Clone, Copy)]
pub struct Ranks(&'static dyn Communicator);

/// Bytes of gradients that travel at once.
pub(crate) const BUCKET_BYTES: usize = 25 << 20;

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Ranks(&Solo)
    }

    /// Those of a communicator.
    pub fn of(comm: &'static dyn Communicator) -> Self {
        Ranks(comm)
    }

    /// This process, from 0.
    pub fn rank(self) -> usize {
        self.0.rank()
    }

    /// How many there are.
    pub fn size(self) -> usize {
        self.0.size()
    }

    /// Whether there are others.
    pub fn has_others(self) -> bool {
        self.0.has_others()
    }

    /// Whether this process writes what all found.
    pub fn is_first(self) -> bool {
        self.0.is_first()
    }

    /// This rank's share of `n` things, of which rank r has those whose place leaves r when divided
    /// by the number of ranks.
    pub fn share(self, n: usize) -> impl ExactSizeIterator<Item = usize> {
        (self.rank()..n).step_by(self.size().max(1))
    }

    /// Replaces numbers by their sums over all ranks.
    ///
    /// # Errors
    /// `Ranks` where one does not take part; so of all below.
    pub fn add_up(self, numbers: &mut [f64]) -> Result<()> {
        let summed = self.0.reduce_numbers(numbers, ReduceOp::Sum);
        summed.map_err(of_comm)
    }

    /// Replaces numbers by the greatest of all ranks.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn greatest(self, numbers: &mut [f64]) -> Result<()> {
        let found = self.0.reduce_numbers(numbers, ReduceOp::Max);
        found.map_err(of_comm)
    }

    /// All ranks' numbers, in the order of the ranks; each has as many as it has.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn gather_numbers(self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        if !self.has_others() {
            return Ok(vec![own.to_vec()]);
        }
        let lens = self.gather_equal(&[own.len() as f64])?;
        let lens = lens.iter().map(|&len| len as usize);
        let longest = lens.clone().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.size()]);
        }
        let mut padded = own.to_vec();
        padded.resize(longest, 0.0);
        let all = self.gather_equal(&padded)?;
        let of_ranks = all.chunks(longest).zip(lens);
        Ok(of_ranks
            .map(|(numbers, len)| numbers.iter().copied().take(len).collect())
            .collect())
    }

    /// The same of equally many numbers on each, one after the other.
    fn gather_equal(self, own: &[f64]) -> Result<Vec<f64>> {
        let n = own.len().saturating_mul(self.size());
        let own = Tensor::f_from_slice(own)?;
        let all = Tensor::f_zeros([n as i64], (own.kind(), own.device()))?;
        let gathered = self.0.all_gather(&all, &own).map_err(of_comm)?;
        gathered.wait().map_err(of_comm)?;
        Ok(Vec::<f64>::try_from(&all)?)
    }

    /// Whether it is so on any rank.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn any(self, is_so: bool) -> Result<bool> {
        self.0.any(is_so).map_err(of_comm)
    }

    /// Replaces tensors by their sums over all ranks, in buckets of which several travel at a time.
    /// On all ranks they have the same shapes and types, in the same order.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn sum_tensors(self, tensors: &[Tensor]) -> Result<()> {
        if !self.has_others() {
            return Ok(());
        }
        let mut under_way = Vec::new();
        for bucket in buckets(tensors) {
            under_way.push(self.start_sum(&bucket)?);
        }
        under_way
            .into_iter()
            .try_for_each(|work| work.wait().map_err(of_comm))
    }

    /// Begins to replace tensors of one type by their sums over all ranks; nobody touches them
    /// until the work is waited for.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn start_sum(self, tensors: &[&Tensor]) -> Result<Work> {
        self.0.all_reduce(tensors, ReduceOp::Sum).map_err(of_comm)
    }

    /// Begins to put all ranks' `from` into `into`, one after the other.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn start_gather(self, into: &Tensor, from: &Tensor) -> Result<Work> {
        self.0.all_gather(into, from).map_err(of_comm)
    }

    /// Begins to put this rank's part of the sum of all ranks' `from` into `into`.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn start_sum_parts(self, into: &Tensor, from: &Tensor) -> Result<Work> {
        let begun = self.0.reduce_scatter(into, from, ReduceOp::Sum);
        begun.map_err(of_comm)
    }

    /// Puts all ranks' `from` into `into`, one after the other.
    ///
    /// # Errors
    /// As [`Ranks::add_up`].
    pub fn all_gather(self, into: &Tensor, from: &Tensor) -> Result<()> {
        let work = self.0.all_gather(into, from).map_err(of_comm)?;
        work.wait().map_err(of_comm)
    }

    /// What the ranks share besides tensors.
    ///
    /// # Errors
    /// `Internal` of one process, which shares nothing.
    pub fn shared(self) -> Result<Shared> {
        let comm = self.0;
        let store = comm.store().present("a store of several ranks")?;
        Ok(Shared { comm, store })
    }

    /// Has the first rank do what only one may; the others wait for it, and end where it failed.
    ///
    /// # Errors
    /// The first rank's own, and for the others `Ranks`.
    pub fn first(self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let done = if self.is_first() { work() } else { Ok(()) };
        self.all(done)
    }

    /// Goes on where every rank has done its part.
    ///
    /// # Errors
    /// The rank's own, and `Ranks` where another failed.
    pub fn all(self, done: Result<()>) -> Result<()> {
        let has_failed = self.any(done.is_err());
        done?;
        match has_failed? {
            true => Err(Error::Ranks(
                "another rank could not go on; its own output says why".into(),
            )),
            false => Ok(()),
        }
    }

    /// Refuses a job that is not the same on all ranks: `value` is what decides it.
    ///
    /// # Errors
    /// `Ranks` naming the first rank that differs and what differs.
    pub fn same(self, what: &str, value: &Value) -> Result<()> {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let Some(store) = self.0.store().filter(|_| self.has_others()) else {
            return Ok(());
        };
        let place = ASKED.fetch_add(1, Ordering::Relaxed);
        let key = |rank: usize| format!("same/{place}/{rank}");
        let read = |rank: usize| -> Result<Value> {
            let bytes = store.read(&key(rank)).map_err(of_comm)?;
            serde_json::from_slice(&bytes).map_err(|e| Error::Internal(format!("ranks: {e}")))
        };
        let text = value.to_string();
        store
            .set(&key(self.rank()), text.as_bytes())
            .map_err(of_comm)?;
        let first = read(0)?;
        if !self.any(first != *value)? {
            return Ok(());
        }
        let mut others = Vec::with_capacity(self.size());
        for rank in 1..self.size() {
            others.push(read(rank)?);
        }
        // Whoever serves the store ends with this error: not before all have read.
        self.any(false)?;
        for (idx, other) in others.into_iter().enumerate() {
            let rank = idx + 1;
            let keys = differing_keys(&first, &other).join(", ");
            if other != first {
                return Err(Error::Ranks(format!(
                    "{what}: rank {rank} has not the same as rank 0 ({keys}); start all ranks \
                     with the same command, files and program"
                )));
            }
        }
        Ok(())
    }
}

impl World for Ranks {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<()> {
        let work = self.0.broadcast(tensor, from).map_err(of_comm)?;
        work.wait().map_err(of_comm)
    }
}

/// Keys and queues of short texts that ranks share.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    comm: &'static dyn Communicator,
    store: &'static Store,
}

impl Shared {
    /// Sets a key.
    ///
    /// # Errors
    /// `Ranks` where whoever serves them is gone; so of all below.
    pub fn set(self, key: &str, text: &str) -> Result<()> {
        self.store.set(key, text.as_bytes()).map_err(of_comm)
    }

    /// Whether a key is set.
    ///
    /// # Errors
    /// As [`Shared::set`].
    pub fn has(self, key: &str) -> Result<bool> {
        self.store.has(key).map_err(of_comm)
    }

    /// A key's text, once somebody has set it.
    ///
    /// # Errors
    /// As [`Shared::set`].
    pub fn read(self, key: &str) -> Result<String> {
        let bytes = self.store.read(key).map_err(of_comm)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Puts a text at a queue's end.
    ///
    /// # Errors
    /// As [`Shared::set`].
    pub fn push(self, queue: &str, text: &str) -> Result<()> {
        self.store.push(queue, text.as_bytes()).map_err(of_comm)
    }

    /// Takes the text at a queue's beginning.
    ///
    /// # Errors
    /// As [`Shared::set`].
    pub fn pop(self, queue: &str) -> Result<Option<String>> {
        let bytes = self.store.pop(queue).map_err(of_comm)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whether a queue holds nothing.
    ///
    /// # Errors
    /// As [`Shared::set`].
    pub fn is_empty(self, queue: &str) -> Result<bool> {
        let len = self.store.queue_len(queue).map_err(of_comm)?;
        Ok(len == 0)
    }

    /// Counts up while a rank lives.
    ///
    /// # Errors
    /// As [`Shared::set`].
    pub fn signs_of_life(self, rank: usize) -> Result<i64> {
        self.comm.signs_of_life(rank).map_err(of_comm)
    }
}

/// Tensors of one type that follow each other, up to a bucket's bytes.
fn buckets(tensors: &[Tensor]) -> Vec<Vec<&Tensor>> {
    let mut buckets: Vec<Vec<&Tensor>> = Vec::new();
    let mut n_bytes = 0_usize;
    for tensor in tensors {
        let bytes = tensor
            .numel()
            .saturating_mul(tensor.kind().elt_size_in_bytes());
        n_bytes = n_bytes.saturating_add(bytes);
        let last = buckets.last_mut().filter(|bucket| {
            let is_same = bucket
                .first()
                .is_some_and(|first| first.kind() == tensor.kind());
            is_same && n_bytes <= BUCKET_BYTES
        });
        match last {
            Some(bucket) => bucket.push(tensor),
            None => {
                buckets.push(vec![tensor]);
                n_bytes = bytes;
            }
        }
    }
    buckets
}

/// What went wrong between ranks.
pub fn of_comm(error: CommError) -> Error {
    Error::Ranks(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tch::{Device, Kind};

    #[test]
    fn one_process_is_all_there_is() {
        let ranks = Ranks::alone();
        let mut numbers = [1.0, 2.0];
        ranks.add_up(&mut numbers).unwrap();
        assert_eq!(numbers, [1.0, 2.0]);
        assert_eq!(ranks.gather_numbers(&[1.0]).unwrap(), [[1.0]]);
        assert_eq!(ranks.share(3).collect::<Vec<_>>(), [0, 1, 2]);
        ranks.same("job", &json!({ "a": 1 })).unwrap();
        let refused = ranks.first(|| Err(Error::Data("x".into()))).unwrap_err();
        assert_eq!(refused.kind(), "data");
    }

    #[test]
    fn a_bucket_holds_one_type_and_no_more_than_its_bytes() {
        let of = |n: i64, kind| Tensor::zeros([n], (kind, Device::Cpu));
        let third = (BUCKET_BYTES / 12) as i64;
        let tensors = [
            of(third, Kind::Float),
            of(third, Kind::Float),
            of(2 * third, Kind::Float),
            of(3, Kind::Half),
            of(8 * third, Kind::Half),
        ];
        let sizes: Vec<usize> = buckets(&tensors).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
        assert!(buckets(&[]).is_empty());
    }
}
