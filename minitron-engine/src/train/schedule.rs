//! Learning rate over steps.

use std::f64::consts::PI;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use minitron_core::error::{Error, Result};

/// How the rate goes on after warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// Half a cosine from the peak to the minimum (Loshchilov & Hutter 2017, arXiv 1608.03983).
    #[default]
    Cosine,
    /// A straight line from the peak to the minimum.
    Linear,
    /// The peak to the end.
    Constant,
    /// Warm-up, stable, decay: the peak, then a straight line to the minimum (Hu et al. 2024, arXiv
    /// 2404.06395).
    Wsd,
}

impl FromStr for ScheduleShape {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "cosine" => Ok(ScheduleShape::Cosine),
            "linear" => Ok(ScheduleShape::Linear),
            "constant" => Ok(ScheduleShape::Constant),
            "wsd" => Ok(ScheduleShape::Wsd),
            other => Err(Error::unknown(
                "schedule",
                other,
                ["cosine", "linear", "constant", "wsd"],
            )),
        }
    }
}

/// Linear warm-up to the peak, then the shape.
///
/// With s the step, w the warm-up steps, S all steps, d the first step of the decay (w, but S −
/// decay steps for `wsd`):
///
/// ```text
/// s ≤ w     peak · s / w
/// cosine    min + (peak − min) · (1 + cos(π·(s − d)/(S − d))) / 2
/// linear    min + (peak − min) · (S − s)/(S − d)              wsd the same, the peak up to d
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// What follows warm-up.
    pub shape: ScheduleShape,
    /// Highest rate.
    pub peak: f64,
    /// Rate of the last step.
    pub minimum: f64,
    /// Steps up to the peak.
    pub n_warmup: u64,
    /// Steps that a `wsd` decays over, at the end.
    pub n_decay: u64,
    /// All steps.
    pub n_steps: u64,
}

impl Schedule {
    /// Rate of a step, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.n_warmup {
            return self.peak * step as f64 / self.n_warmup.max(1) as f64;
        }
        let begin = match self.shape {
            ScheduleShape::Wsd => self.n_steps.saturating_sub(self.n_decay).max(self.n_warmup),
            _ => self.n_warmup,
        };
        let span = self.n_steps.saturating_sub(begin).max(1);
        let done = (step.saturating_sub(begin) as f64 / span as f64).min(1.0);
        let left = match self.shape {
            ScheduleShape::Constant => 1.0,
            ScheduleShape::Cosine => 0.5 * (1.0 + (PI * done).cos()),
            ScheduleShape::Linear | ScheduleShape::Wsd => 1.0 - done,
        };
        self.minimum + (self.peak - self.minimum) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: ScheduleShape) -> Schedule {
        Schedule {
            shape,
            peak: 1.0,
            minimum: 0.1,
            n_warmup: 4,
            n_decay: 5,
            n_steps: 20,
        }
    }

    fn assert_rates(shape: ScheduleShape, expected: &[(u64, f64)]) {
        for (step, rate) in [(1, 0.25), (4, 1.0)].iter().chain(expected) {
            let found = schedule(shape).at(*step);
            assert!(
                (found - rate).abs() < 1e-12,
                "{shape:?} at {step}: expected {rate}, got {found}"
            );
        }
        assert!(
            (4..=20)
                .map(|s| schedule(shape).at(s))
                .is_sorted_by(|a, b| a >= b),
            "{shape:?} rises"
        );
    }

    #[test]
    fn cosine_falls_to_the_minimum_by_way_of_the_middle() {
        assert_rates(
            ScheduleShape::Cosine,
            &[
                (8, 0.1 + 0.45 * (1.0 + (PI / 4.0).cos())),
                (12, 0.55),
                (20, 0.1),
                (25, 0.1),
            ],
        );
    }

    #[test]
    fn linear_falls_evenly() {
        assert_rates(
            ScheduleShape::Linear,
            &[(8, 0.775), (12, 0.55), (20, 0.1), (25, 0.1)],
        );
    }

    #[test]
    fn constant_stays() {
        assert_rates(ScheduleShape::Constant, &[(5, 1.0), (20, 1.0), (25, 1.0)]);
    }

    #[test]
    fn warm_up_stable_decay_falls_at_the_end_alone() {
        assert_rates(
            ScheduleShape::Wsd,
            &[
                (5, 1.0),
                (15, 1.0),
                (16, 0.82),
                (19, 0.28),
                (20, 0.1),
                (25, 0.1),
            ],
        );
        // A decay longer than what warm-up leaves begins at the peak.
        let all = Schedule {
            n_decay: 20,
            ..schedule(ScheduleShape::Wsd)
        };
        assert!((4..=20).all(|step| all.at(step) == schedule(ScheduleShape::Linear).at(step)));
    }

    #[test]
    fn no_warm_up_begins_below_the_peak_and_still_ends_at_the_minimum() {
        let none = Schedule {
            n_warmup: 0,
            ..schedule(ScheduleShape::Linear)
        };
        assert!(none.at(1) < 1.0 && (none.at(20) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn shapes_are_read_by_name() {
        assert_eq!("wsd".parse::<ScheduleShape>().unwrap(), ScheduleShape::Wsd);
        assert!(
            "cos"
                .parse::<ScheduleShape>()
                .unwrap_err()
                .to_string()
                .contains("known: cosine, linear, constant, wsd")
        );
        assert_eq!(serde_json::to_value(ScheduleShape::Wsd).unwrap(), "wsd");
    }
}
