//! Which text a step is of, and its batches.

use std::cell::RefCell;

use tch::Device;

use super::batches::Batches;
use super::counts::Counts;
use super::length_stage::{LongWindows, Passes};
use super::run::Trainer;
use crate::data::DataLoader;
use minitron_core::error::Result;

impl Trainer<'_> {
    /// The length stage, where a step is in it.
    fn long_at(&self, step: u64) -> Option<&LongWindows<'_>> {
        // Of the text as it began: the steps are the same ones throughout.
        let width = self.loader.borrow().mean_width();
        let n_steps = self.settings.schedule(width).n_steps;
        self.long.as_ref().filter(|long| long.has(step, n_steps))
    }

    /// Where a step's windows come from.
    pub(super) fn loader_at(&self, step: u64) -> &RefCell<DataLoader> {
        self.long_at(step).map_or(self.loader, |long| long.loader)
    }

    /// How a step is divided.
    pub(super) fn passes_at(&self, step: u64) -> Passes {
        match self.long_at(step) {
            Some(long) => Passes {
                batch_size: long.batch_size,
                accumulate: long.accumulate,
            },
            None => Passes {
                batch_size: self.settings.batch_size,
                accumulate: self.settings.accumulate,
            },
        }
    }

    /// A step's batches, and over how much they are averaged.
    pub(super) fn batches(&self, step: u64, device: Device) -> Result<(Batches, Counts)> {
        let Passes {
            batch_size,
            accumulate,
        } = self.passes_at(step);
        let loader = &mut self.loader_at(step).borrow_mut();
        let passes = (batch_size, accumulate);
        let batches = Batches::take(loader, self.task, passes, device, self.ranks)?;
        let whole = batches.counts()?.reduced(self.ranks)?;
        Ok((batches, whole))
    }
}
