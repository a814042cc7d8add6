//! What is said of a step while a run goes on.

use super::held_out::HeldOutLoss;
use super::step::Step;
use minitron_core::progress::Progress;

/// What stands beside the bar: of several learners, the best one's.
#[derive(Default)]
pub(super) struct ProgressLine {
    held_out: String,
    has_warned: bool,
}

impl ProgressLine {
    /// Says once that a step had nothing to learn from; the record of each such step says so too.
    pub fn warn_of_empty(&mut self, step: u64, done: &[Step], progress: &dyn Progress) {
        if done.iter().any(|step| step.is_empty) && !std::mem::replace(&mut self.has_warned, true) {
            progress.warn(&format!(
                "step {step}: nothing is predicted in its windows, so it changes nothing; such \
                 steps have \"n_predictions\":0 in metrics.jsonl"
            ));
        }
    }

    /// The note to show after a step.
    pub fn after(&mut self, done: &[Step], lr: f64, evaluated: &[HeldOutLoss]) -> String {
        let held_out = evaluated.iter().map(HeldOutLoss::value);
        if let Some(loss) = held_out.min_by(f64::total_cmp) {
            self.held_out = format!("  held out {loss:.4}");
        }
        let applied = done.iter().filter(|step| step.is_applied());
        let loss = match applied.map(|step| step.loss).min_by(f64::total_cmp) {
            Some(loss) => format!("loss {loss:.4}"),
            None => "step skipped".to_owned(),
        };
        format!("{loss}  lr {lr:.1e}{}", self.held_out)
    }
}
