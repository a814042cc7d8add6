//! What is left to say of a run at its end.

use super::held_out::Best;

/// How a run went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Steps done, earlier runs included.
    pub n_steps: u64,
    /// Steps planned.
    pub n_planned: u64,
    /// Tokens seen, earlier runs included.
    pub n_tokens: u64,
    /// Steps among them that changed nothing.
    pub n_skipped: u64,
    /// Mean loss over the predictions of the last tenth of all steps, skipped ones left out.
    pub loss: Option<f64>,
    /// The best evaluation, earlier runs included.
    pub best: Option<Best>,
    /// Whether the run was asked to end before the last of the steps it was to do.
    pub is_interrupted: bool,
    /// Rate of this run, the first step left out.
    pub tokens_per_second: f64,
    /// What a step was expected to take at its peak.
    pub memory_bytes: u64,
}

impl Outcome {
    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.n_steps >= self.n_planned
    }
}
