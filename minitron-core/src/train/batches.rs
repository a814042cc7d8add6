//! The batches of one step, which are known before its first pass: losses are averaged over all of them.

use tch::Device;

use super::counts::Counts;
use crate::data::{Feed, Piece, Targets, Task};
use crate::error::Result;

/// A step's batches, one for each pass.
///
/// Of several passes only token ids are held; a batch's tensors exist during its pass, and once more while it is counted.
#[derive(Debug)]
pub(super) struct Batches {
    task: Task,
    n_brackets: usize,
    device: Device,
    batches: Vec<Batch>,
}

#[derive(Debug)]
enum Batch {
    Built(Targets),
    Pieces(Vec<Piece>),
}

impl Batches {
    /// The next `n_passes` batches of `batch_size` windows.
    ///
    /// # Errors
    /// As [`Feed::take`].
    pub fn take(feed: &mut Feed, task: Task, (batch_size, n_passes): (usize, usize), device: Device) -> Result<Self> {
        let mut batches = Batches { task, n_brackets: feed.n_brackets(), device, batches: Vec::new() };
        for _ in 0..n_passes {
            let pieces = feed.take(batch_size)?;
            batches.batches.push(match n_passes {
                1 => Batch::Built(batches.build(&pieces, device)?),
                _ => Batch::Pieces(pieces),
            });
        }
        Ok(batches)
    }

    /// Number of passes.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// What the step's losses are averaged over.
    pub fn counts(&self) -> Result<Counts> {
        let of = |batch: &Batch| match batch {
            Batch::Built(targets) => Counts::of(targets),
            Batch::Pieces(pieces) => Counts::of(&self.build(pieces, Device::Cpu)?),
        };
        self.batches.iter().map(of).sum()
    }

    /// Shows every batch in turn.
    pub fn each(&self, mut look: impl FnMut(&Targets) -> Result<()>) -> Result<()> {
        for batch in &self.batches {
            match batch {
                Batch::Built(targets) => look(targets)?,
                Batch::Pieces(pieces) => {
                    let build = || self.build(pieces, self.device);
                    look(&tracing::debug_span!("data").in_scope(build)?)?;
                }
            }
        }
        Ok(())
    }

    fn build(&self, pieces: &[Piece], device: Device) -> Result<Targets> {
        self.task.batch_of(pieces, self.n_brackets, device)
    }
}
