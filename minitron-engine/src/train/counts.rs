//! How many things a loss is the mean of.

use std::iter::Sum;

use crate::ranks::Ranks;
use minitron_core::error::Result;
use minitron_core::windows::Batch;

/// What losses are averaged over: a step's, of all its passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Predictions, for losses on logits.
    pub predictions: i64,
    /// Tokens for losses on states: padding left out, and where answers alone count all that
    /// predicts none.
    pub tokens: i64,
}

impl Counts {
    /// Of one batch, as the host knows it.
    ///
    /// # Errors
    /// None.
    pub fn of(batch: &Batch) -> Result<Self> {
        Ok(Counts {
            predictions: batch.n_rows(),
            tokens: batch.n_compared(),
        })
    }

    /// Over all ranks.
    ///
    /// # Errors
    /// `Ranks` where one does not take part.
    pub fn reduced(self, ranks: Ranks) -> Result<Self> {
        // Exact below 2^53.
        let mut numbers = [self.predictions as f64, self.tokens as f64];
        ranks.add_up(&mut numbers)?;
        let [predictions, tokens] = numbers.map(|n| n as i64);
        Ok(Counts {
            predictions,
            tokens,
        })
    }

    /// Of both together.
    #[must_use]
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            predictions: self.predictions + other.predictions,
            tokens: self.tokens + other.tokens,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Counts>>(all: I) -> Counts {
        all.fold(Counts::default(), Counts::plus)
    }
}

/// A mean of `n` things; 0 of none.
pub(super) fn mean(sum: f64, n: i64) -> f64 {
    if n == 0 { 0.0 } else { sum / n as f64 }
}
