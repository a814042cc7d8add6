//! Successive halving (Jamieson & Talwalkar, arXiv 1502.07943): everyone a little, the better ones
//! more.

use minitron_core::error::{Error, Result};

/// How a field shrinks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Halving {
    /// Stretches of training, after each of which some candidates leave.
    pub n_rungs: usize,
    /// Share that stays after each but the last.
    pub keep: f64,
}

/// A stretch of training that ends for everyone in it at the same step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// Who takes part.
    pub n_candidates: usize,
    /// Step at which it ends.
    pub until: u64,
}

impl Halving {
    /// The rungs of a field over so many steps, evaluations every `every` of them; each rung ends
    /// at one. The last step of a rung is `1 / keep` times that of the one before, so that every
    /// rung costs about the same.
    ///
    /// # Errors
    /// `Recipe` for a share outside 0 to 1, or fewer evaluations than rungs.
    pub fn rungs(&self, n_candidates: usize, n_steps: u64, every: u64) -> Result<Vec<Rung>> {
        if !(self.keep > 0.0 && self.keep <= 1.0) || self.n_rungs == 0 {
            return Err(Error::Recipe(
                "rungs, keep: expected at least 1 rung, and a share above 0, at most 1".into(),
            ));
        }
        let every = every.max(1);
        if n_steps / every < self.n_rungs as u64 {
            return Err(Error::Recipe(format!(
                "rungs: {} of them need as many evaluations, {n_steps} steps with one every \
                 {every} hold {}; give more tokens, or evaluate more often",
                self.n_rungs,
                n_steps / every
            )));
        }
        let (mut rungs, mut remaining, mut before) = (Vec::new(), n_candidates, 0);
        for rung in 0..self.n_rungs {
            let is_last = rung + 1 == self.n_rungs;
            let share = self.keep.powi((self.n_rungs - rung - 1) as i32);
            let wanted =
                ((n_steps as f64 * share / every as f64).round() as u64).saturating_mul(every);
            // Later rungs need an evaluation each.
            let n_later = (self.n_rungs - rung - 1) as u64;
            let room = (n_steps / every)
                .saturating_sub(n_later)
                .saturating_mul(every);
            let until = if is_last {
                n_steps
            } else {
                wanted.clamp(before + every, room.max(before + every))
            };
            rungs.push(Rung {
                n_candidates: remaining,
                until,
            });
            before = until;
            remaining = ((remaining as f64 * self.keep).ceil() as usize).clamp(1, remaining.max(1));
        }
        Ok(rungs)
    }
}
