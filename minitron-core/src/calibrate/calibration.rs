use std::ops::Range;

use tch::Tensor;

use super::world::World;
use crate::error::Result;
use crate::progress::Progress;
use crate::windows::{Task, Windows};

/// What a pass runs over.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'a> {
    /// The text.
    pub windows: &'a Windows,
    /// What the model is asked to predict, where something needs predictions.
    pub task: Option<Task>,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Who else looks at the text.
    pub world: &'a dyn World,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

impl Calibration<'_> {
    /// Runs of windows, one a forward pass.
    pub fn batches(&self) -> Vec<Range<usize>> {
        self.windows.batches(self.batch_size)
    }

    /// Those of this process, one in every round: the first round has the first batches, one for
    /// each process, and so on. Where none is left for it in the last round it sees an earlier one
    /// again, which does not count.
    pub fn own_batches(&self) -> Vec<Range<usize>> {
        let (all, n_ranks) = (self.batches(), self.world.size().max(1));
        let n = all.len();
        let rounds = (0..n).step_by(n_ranks);
        let of_round = |first: usize| all.get((first + self.world.rank()) % n).cloned();
        rounds.filter_map(of_round).collect()
    }

    /// Shows `add` what every batch of a round gave, with its place among all: in their order, so
    /// that sums are the same bytes whatever the number of processes. `own` is what this process's
    /// batch gave; of all batches it has the same shapes and types.
    ///
    /// # Errors
    /// As [`World::broadcast`] and `add`.
    pub fn in_order(
        &self,
        round: usize,
        own: Vec<Tensor>,
        add: &mut dyn FnMut(usize, &[Tensor]) -> Result<()>,
    ) -> Result<()> {
        let (n_ranks, n_batches) = (self.world.size().max(1), self.batches().len());
        let first = round.saturating_mul(n_ranks);
        for rank in (0..n_ranks).take(n_batches.saturating_sub(first)) {
            if n_ranks == 1 {
                return add(first, &own);
            }
            let mut given = Vec::with_capacity(own.len());
            for tensor in &own {
                let tensor = match rank == self.world.rank() {
                    true => tensor.f_contiguous()?,
                    false => tensor.f_empty_like()?.f_contiguous()?,
                };
                self.world.broadcast(&tensor, rank)?;
                given.push(tensor);
            }
            add(first.saturating_add(rank), &given)?;
        }
        Ok(())
    }
}
