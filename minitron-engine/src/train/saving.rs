//! When states are kept, and how many.

use std::time::{Duration, Instant};

use super::held_out::HeldOut;
use minitron_core::error::{Error, Result};

/// States are kept after some steps or some minutes, whichever comes first; which they are decides
/// nothing about the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saving {
    /// Steps in between; a tenth of the run where not given.
    pub every: Option<u64>,
    /// Minutes in between.
    pub minutes: f64,
    /// How many are kept, beside the one of the best evaluation.
    pub keep: usize,
}

impl Default for Saving {
    fn default() -> Self {
        Saving {
            every: None,
            minutes: 30.0,
            keep: 2,
        }
    }
}

impl Saving {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// `Recipe` naming the setting.
    pub fn check(&self) -> Result<()> {
        let wrong = match self {
            s if s.every == Some(0) || s.keep == 0 => "checkpoint_every, keep: expected at least 1",
            s if s.minutes.is_nan() || s.minutes <= 0.0 => {
                "checkpoint_minutes: expected a positive number"
            }
            _ => return Ok(()),
        };
        Err(Error::Recipe(wrong.to_owned()))
    }

    pub(super) fn timer(&self, n_steps: u64) -> Timer {
        let every = self.every.unwrap_or(n_steps.div_ceil(10)).max(1);
        // More than can be waited for is never.
        let pause = Duration::try_from_secs_f64(self.minutes * 60.0).unwrap_or(Duration::MAX);
        Timer {
            every,
            tenth: n_steps.div_ceil(10).max(1),
            pause,
            last: Instant::now(),
        }
    }
}

/// Counts from one state to the next.
pub(super) struct Timer {
    every: u64,
    tenth: u64,
    pause: Duration,
    last: Instant,
}

impl Timer {
    /// Whether a state is to be kept after this step.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every) || self.last.elapsed() >= self.pause
    }

    /// Whether held-out text is due: by steps alone, since time is another in every run.
    pub fn is_evaluated(&self, step: u64, held_out: &HeldOut) -> bool {
        step.is_multiple_of(held_out.every.unwrap_or(self.tenth).max(1))
    }

    /// A state was kept.
    pub fn reset(&mut self) {
        self.last = Instant::now();
    }
}
