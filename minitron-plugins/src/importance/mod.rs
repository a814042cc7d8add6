//! Metrics: how much each unit matters.

mod activation;
mod block_influence;
mod channels;
mod fluctuation;
mod magnitude;
mod norm_ratio;
mod normalised_error;
mod perplexity;
mod random;
mod reap;
mod runs;
mod task_accuracy;
mod taylor;
mod torchscript;
mod wanda;
mod weights;

use minitron_core::error::{Error, Result};

/// A state from elsewhere must be of the same metric and group.
fn check_len(state: &[f64], expected: usize) -> Result<()> {
    if state.len() == expected {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "a scorer's state of {} numbers, expected {expected}: of another metric",
        state.len()
    )))
}

/// Adds a state of sums to ours.
fn add_sums(sums: &mut [f64], state: &[f64]) -> Result<()> {
    check_len(state, sums.len())?;
    sums.iter_mut()
        .zip(state)
        .for_each(|(ours, theirs)| *ours += theirs);
    Ok(())
}
