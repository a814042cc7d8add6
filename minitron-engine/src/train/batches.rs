//! The batches of one step, which are known before its first pass: losses are averaged over all of
//! them.

use tch::Device;

use super::counts::Counts;
use crate::data::DataLoader;
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
}

#[derive(Debug)]
enum Pending {
    Built(Batch),
    Samples(Vec<Sample>),
}

impl Batches {
    /// The next `n_passes` batches of `batch_size` windows.
    ///
    /// # Errors
    /// As [`DataLoader::take`].
    pub fn take(
        loader: &mut DataLoader,
        task: Task,
        (batch_size, n_passes): (usize, usize),
        device: Device,
    ) -> Result<Self> {
        let mut batches = Batches {
            task,
            n_special_tokens: loader.n_special_tokens(),
            device,
            batches: Vec::new(),
        };
        for _ in 0..n_passes {
            let samples = loader.take(batch_size)?;
            batches.batches.push(match n_passes {
                1 => Pending::Built(batches.build(&samples, device)?),
                _ => Pending::Samples(samples),
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
        let of_each = self.batches.iter().map(|pending| match pending {
            Pending::Built(batch) => Counts::of(batch),
            Pending::Samples(samples) => Counts::of(&self.build(samples, Device::Cpu)?),
        });
        of_each.sum()
    }

    /// Shows every batch in turn.
    pub fn each(&self, mut look: impl FnMut(&Batch) -> Result<()>) -> Result<()> {
        for pending in &self.batches {
            match pending {
                Pending::Built(batch) => look(batch)?,
                Pending::Samples(samples) => {
                    let batch = tracing::debug_span!("data")
                        .in_scope(|| self.build(samples, self.device))?;
                    look(&batch)?;
                }
            }
        }
        Ok(())
    }

    fn build(&self, samples: &[Sample], device: Device) -> Result<Batch> {
        self.task.batch_of(samples, self.n_special_tokens, device)
    }
}
