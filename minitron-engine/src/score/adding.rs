//! How what batches showed is added up, of this process and of others.

use super::parts::{Part, decoded, encoded};
use super::scorers::ScorerSet;
use crate::ranks::Ranks;
use minitron_core::error::{Present, Result};

impl ScorerSet {
    /// Makes what was seen since the last call a part by itself.
    pub(super) fn close_part(&mut self) {
        self.parts.extend(self.fresh.take());
    }

    /// What was seen and not yet added, in order.
    pub(super) fn take_parts(&mut self) -> Vec<Part> {
        self.close_part();
        std::mem::take(&mut self.parts)
    }

    /// Adds parts to what was seen before.
    pub(super) fn add(&mut self, parts: &[Part]) -> Result<()> {
        for Part { key, state } in parts {
            let (slot, fold) = *key;
            let slot = self.slots.get_mut(slot).present("a part's slot")?;
            let scorer = match fold.checked_sub(1) {
                Some(fold) => slot.folds.get_mut(fold).present("a part's fold")?,
                None => &mut slot.scorer,
            };
            scorer.merge(state)?;
        }
        Ok(())
    }

    /// Adds what all ranks have seen since the last call: each a batch, or nothing.
    pub(super) fn add_round(&mut self, ranks: Ranks) -> Result<()> {
        let parts = self.take_parts();
        match ranks.has_others() {
            true => self.add_of_all(ranks, &encoded(&parts)),
            false => self.add(&parts),
        }
    }

    /// Adds all ranks' parts, in the order of the ranks.
    pub(super) fn add_of_all(&mut self, ranks: Ranks, own: &[f64]) -> Result<()> {
        for numbers in ranks.gather_numbers(own)? {
            self.add(&decoded(&numbers)?)?;
        }
        Ok(())
    }
}
