//! Learning rate over steps.

use std::f64::consts::PI;

/// Linear warm-up, then a cosine from the peak to the minimum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest rate.
    pub peak: f64,
    /// Rate of the last step.
    pub minimum: f64,
    /// Steps up to the peak.
    pub n_warmup: u64,
    /// All steps.
    pub n_steps: u64,
}

impl Schedule {
    /// Rate of a step, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.n_warmup {
            return self.peak * step as f64 / self.n_warmup.max(1) as f64;
        }
        let span = self.n_steps.saturating_sub(self.n_warmup).max(1);
        let done = (step.saturating_sub(self.n_warmup) as f64 / span as f64).min(1.0);
        self.minimum + 0.5 * (self.peak - self.minimum) * (1.0 + (PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_the_minimum() {
        let schedule = Schedule { peak: 1.0, minimum: 0.1, n_warmup: 4, n_steps: 20 };
        assert_eq!(schedule.at(1), 0.25);
        assert_eq!(schedule.at(4), 1.0);
        assert!((schedule.at(12) - 0.55).abs() < 1e-12);
        assert!((schedule.at(20) - 0.1).abs() < 1e-12);
        assert!((1..20).map(|s| schedule.at(s)).skip(4).is_sorted_by(|a, b| a >= b));
    }
}
