//! The batches of one step, which are known before its first pass: losses are averaged over all of
//! them.

use tch::Device;

use super::counts::Counts;
use crate::data::DataLoader;
use crate::ranks::Ranks;
use minitron_core::error::Result;
use minitron_core::windows::{Batch, Sample, Task};

/// A step's batches, one for each pass.
///
/// Of several passes only token ids are held; a batch's tensors exist during its pass, and once
/// more while it is counted.
#[derive(Debug)]
pub(super) struct Batches {
    task: Task,
    n_special_tokens: usize,
    device: Device,
    batches: Vec<Pending>,
    /// Passes of the rank that has most.
    n_rounds: usize,
}

#[derive(Debug)]
enum Pending {
    Built(Batch),
    Samples(Vec<Sample>),
}

impl Batches {
    /// This rank's share of the next `n_passes` batches of `batch_size` windows. All ranks take
    /// the same windows from the text; a rank has every Nth of them, in passes of an Nth of the
    /// size, so that a step is the same whatever their number N.
    ///
    /// # Errors
    /// As [`DataLoader::take`].
    pub fn take(
        loader: &mut DataLoader,
        task: Task,
        (batch_size, n_passes): (usize, usize),
        device: Device,
        ranks: Ranks,
    ) -> Result<Self> {
        let mut batches = Batches {
            task,
            n_special_tokens: loader.n_special_tokens(),
            device,
            batches: Vec::new(),
            n_rounds: n_passes,
        };
        let mut passes = Vec::with_capacity(n_passes);
        for _ in 0..n_passes {
            passes.push(loader.take(batch_size)?);
        }
        if ranks.has_others() {
            let size = windows_per_pass(batch_size, ranks);
            let n_windows = passes.iter().map(Vec::len).sum::<usize>();
            batches.n_rounds = n_windows.div_ceil(ranks.size()).div_ceil(size);
            passes = shared(passes, size, ranks);
        }
        let is_single = passes.len() == 1;
        for samples in passes {
            batches.batches.push(match is_single {
                true => Pending::Built(batches.build(&samples, device)?),
                false => Pending::Samples(samples),
            });
        }
        Ok(batches)
    }

    /// Number of passes.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Passes that other ranks make beyond this one's.
    pub fn beyond(&self) -> std::ops::Range<usize> {
        self.len()..self.n_rounds
    }

    /// Whether a pass is the last one of all ranks.
    pub fn is_last(&self, pass: usize) -> bool {
        pass + 1 == self.n_rounds
    }

    /// What this rank's part of the step's losses is averaged over.
    pub fn counts(&self) -> Result<Counts> {
        let of_each = self.batches.iter().map(|pending| match pending {
            Pending::Built(batch) => Counts::of(batch),
            Pending::Samples(samples) => Counts::of(&self.build(samples, Device::Cpu)?),
        });
        of_each.sum()
    }

    /// Shows every batch in turn, with its place.
    pub fn each(&self, mut look: impl FnMut(usize, &Batch) -> Result<()>) -> Result<()> {
        for (idx, pending) in self.batches.iter().enumerate() {
            match pending {
                Pending::Built(batch) => look(idx, batch)?,
                Pending::Samples(samples) => {
                    let batch = tracing::debug_span!("data")
                        .in_scope(|| self.build(samples, self.device))?;
                    look(idx, &batch)?;
                }
            }
        }
        Ok(())
    }

    fn build(&self, samples: &[Sample], device: Device) -> Result<Batch> {
        self.task.batch_of(samples, self.n_special_tokens, device)
    }
}

/// Windows of one pass on each rank, for a batch of so many over all.
pub(super) fn windows_per_pass(batch_size: usize, ranks: Ranks) -> usize {
    batch_size.div_ceil(ranks.size()).max(1)
}

/// A rank's own windows of a step's passes, in passes of `size`.
fn shared(passes: Vec<Vec<Sample>>, size: usize, ranks: Ranks) -> Vec<Vec<Sample>> {
    let all: Vec<Sample> = passes.into_iter().flatten().collect();
    let is_own = |(idx, _): &(usize, Sample)| idx % ranks.size() == ranks.rank();
    let mut own = all.into_iter().enumerate().filter(is_own).peekable();
    let mut passes = Vec::new();
    while own.peek().is_some() {
        passes.push(own.by_ref().take(size).map(|(_, sample)| sample).collect());
    }
    passes
}
