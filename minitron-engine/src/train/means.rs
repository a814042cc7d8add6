//! What the passes of a step give: numbers that lie on the device until the step reads them all at
//! once.

use minitron_torch::read;
use tch::Tensor;

use super::counts::mean;
use minitron_core::error::{Error, Result};

/// What one batch adds to the means of its step; the means themselves where the step is that batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// Each term's own value, losses on logits before those on states.
    pub terms: Vec<f64>,
    /// The weighted sum.
    pub total: f64,
}

/// The values of one pass.
#[derive(Debug, Default)]
pub(super) struct PassValues {
    /// What losses on logits are weighted by.
    pub weights: Vec<f64>,
    /// By loss on logits: its sum over the rows of each chunk, scalars.
    pub sums: Vec<Vec<Tensor>>,
    /// The mean over its tokens of each loss on states, scalars; none where nothing is compared.
    pub on_states: Vec<Tensor>,
    /// What losses on states are multiplied by.
    pub factors: Vec<f64>,
    /// Predictions of the step.
    pub predictions: i64,
    /// The share that the pass has in the tokens of the step.
    pub share: f64,
}

impl PassValues {
    /// All that is to be read, in the order that [`PassValues::means`] takes it.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.sums.iter().flatten().chain(&self.on_states)
    }

    /// Sums of losses on logits, and losses on states, from what was read.
    pub fn values(&self, read: &mut dyn Iterator<Item = f64>) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut sums = Vec::with_capacity(self.sums.len());
        for of_chunks in &self.sums {
            let mut sum = 0.0;
            for _ in of_chunks {
                sum += next(read)?;
            }
            sums.push(sum);
        }
        let mut on_states = Vec::with_capacity(self.on_states.len());
        for _ in &self.on_states {
            on_states.push(next(read)?);
        }
        Ok((sums, on_states))
    }

    /// What the pass adds to the means of its step.
    pub fn means(&self, read: &mut dyn Iterator<Item = f64>) -> Result<Means> {
        let (sums, on_states) = self.values(read)?;
        let mut means = Means {
            terms: Vec::new(),
            total: 0.0,
        };
        for (weight, sum) in self.weights.iter().zip(&sums) {
            let mean = mean(*sum, self.predictions);
            means.terms.push(mean);
            means.total += weight * mean;
        }
        for (value, factor) in on_states.iter().zip(&self.factors) {
            means.terms.push(value * self.share);
            means.total += factor * (value * self.share);
        }
        // What compared nothing adds nothing.
        let n_terms = self.weights.len().saturating_add(self.factors.len());
        means.terms.resize(n_terms, 0.0);
        Ok(means)
    }
}

/// Reads passes, and behind them further scalars of the same device: one wait for all.
///
/// # Errors
/// As libtorch's own copies do.
pub(super) fn read_all<'t>(
    passes: impl IntoIterator<Item = &'t PassValues>,
    further: Vec<Tensor>,
) -> Result<std::vec::IntoIter<f64>> {
    let passes = passes.into_iter().flat_map(PassValues::tensors);
    let mut tensors: Vec<Tensor> = passes.map(|it| it.shallow_clone()).collect();
    tensors.extend(further);
    Ok(read(&tensors)?.into_iter())
}

fn next(read: &mut dyn Iterator<Item = f64>) -> Result<f64> {
    read.next()
        .ok_or_else(|| Error::Internal("fewer numbers were read than there are".into()))
}
