//! The collectives, whoever does them.

use std::fmt::Debug;
use std::sync::Arc;

use tch::Tensor;

use crate::error::Result;
use crate::ffi::RawWork;
use crate::peers::Peers;
use crate::store::Store;

/// How values of all ranks become one; the numbers are c10d's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// Their sum.
    Sum = 0,
    /// The least.
    Min = 3,
    /// The greatest.
    Max = 4,
}

/// Ranks that do the same, in the same order. One thread calls.
///
/// Tensors are contiguous and on a device that the backend knows; of one call, their shapes and
/// types are the same on every rank. Every rank receives the same bits.
///
/// # Errors
/// Every collective: `Unsupported` for tensors that are not as above; `Timeout` or `PeerLost` where
/// a rank does not take part; `Mismatch` where collectives are checked and a rank does another one.
pub trait Communicator: Debug + Send {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// What does the work: `solo`, `gloo`, or `gloo and nccl`.
    fn backend(&self) -> &'static str;

    /// Replaces each tensor by what `op` makes of all ranks' ones.
    fn all_reduce(&self, tensors: &[&Tensor], op: ReduceOp) -> Result<Work>;

    /// What `op` makes of all ranks' `from`, the rank's part of it: `from` is as long as all of
    /// `into` together.
    fn reduce_scatter(&self, into: &Tensor, from: &Tensor, op: ReduceOp) -> Result<Work>;

    /// All ranks' `from`, one after the other.
    fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<Work>;

    /// Replaces the tensor by that of rank `root`.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work>;

    /// Returns when all are here.
    fn barrier(&self) -> Result<()>;

    /// The store that the ranks share; none of a single one.
    fn store(&self) -> Option<&Store>;

    /// Counts up while a rank lives.
    fn signs_of_life(&self, rank: usize) -> Result<i64>;

    /// The last call of all: whoever serves the store waits until those have left who live.
    fn leave(&self) -> Result<()>;

    /// Whether there are others.
    fn has_others(&self) -> bool {
        self.size() > 1
    }

    /// Whether this process writes what the ranks found together.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Replaces numbers by what `op` makes of all ranks'.
    fn reduce_numbers(&self, numbers: &mut [f64], op: ReduceOp) -> Result<()> {
        if self.has_others() && !numbers.is_empty() {
            let all = Tensor::f_from_slice(numbers)?;
            self.all_reduce(&[&all], op)?.wait()?;
            let n = numbers.len();
            all.f_copy_data(numbers, n)?;
        }
        Ok(())
    }

    /// Whether it is so on any rank.
    fn any(&self, is_so: bool) -> Result<bool> {
        let mut flag = [f64::from(u8::from(is_so))];
        self.reduce_numbers(&mut flag, ReduceOp::Max)?;
        Ok(flag[0] > 0.0)
    }
}

/// A collective under way. Its tensors stay alive until it is done, whether it is waited for or
/// not.
#[derive(Debug)]
#[must_use = "a collective is done once it has been waited for"]
pub struct Work(Option<(RawWork, Arc<Peers>)>);

impl Work {
    /// Of what is done already.
    pub fn done() -> Self {
        Work(None)
    }

    pub(crate) fn under_way(work: RawWork, peers: Arc<Peers>) -> Self {
        Work(Some((work, peers)))
    }

    /// Returns when the result is there.
    ///
    /// # Errors
    /// As [`Communicator`] says.
    pub fn wait(self) -> Result<()> {
        match self.0 {
            Some((work, peers)) => work.wait().map_err(|error| peers.named(error)),
            None => Ok(()),
        }
    }
}
