//! Axes of plots: their ends, their marks, and the marks' texts.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// An axis: its ends, and where its marks are.
#[derive(Debug, Clone)]
pub(super) struct ChartAxis {
    ends: (f64, f64),
    ticks: Vec<f64>,
    is_log: bool,
}

impl ChartAxis {
    /// Over these values; logarithmic where that is asked for and the ends are far apart.
    pub(super) fn over(
        values: impl Iterator<Item = f64>,
        from_zero: bool,
        may_be_log: bool,
        n_ticks: usize,
    ) -> Option<Self> {
        let (min, max) = range(values)?;
        let is_log = may_be_log && min > 0.0 && max / min > 6.0;
        let (low, high) = match is_log {
            true => (min.log10(), max.log10()),
            false => (min, max),
        };
        let ends = padded((if from_zero { 0.0 } else { low }, high), from_zero);
        let ticks = if is_log {
            log_ticks(ends, n_ticks)
        } else {
            linear_ticks(ends, n_ticks)
        };
        Some(ChartAxis {
            ends,
            ticks,
            is_log,
        })
    }

    pub(super) fn at(&self, x: f64) -> f64 {
        if self.is_log { x.log10() } else { x }
    }

    pub(super) fn text(&self, x: f64) -> String {
        short(if self.is_log { 10f64.powf(x) } else { x })
    }
}

/// The library's own coordinates choose their marks themselves.
impl Ranged for ChartAxis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, x: &f64, limit: (i32, i32)) -> i32 {
        let share = (x - self.ends.0) / (self.ends.1 - self.ends.0);
        let (from, to) = (f64::from(limit.0), f64::from(limit.1));
        (from + share * (to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.clone()
        }
    }

    fn range(&self) -> Range<f64> {
        self.ends.0..self.ends.1
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, at most so many.
fn linear_ticks((min, max): (f64, f64), most: usize) -> Vec<f64> {
    let least = (max - min) / most.max(1) as f64;
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= least * 0.999);
    let Some(step) = step.filter(|step| step.is_finite() && *step > 0.0) else {
        return Vec::new();
    };
    let (first, last) = ((min / step).ceil() as i64, (max / step).floor() as i64);
    (first..=last)
        .take(most + 2)
        .map(|n| n as f64 * step)
        .collect()
}

/// Logarithms of 1, 2, 5 in every decade, of 1 and 3, or of 1 alone: as many as there is room for.
fn log_ticks((min, max): (f64, f64), most: usize) -> Vec<f64> {
    const CHOICES: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    for steps in CHOICES {
        let ticks = ticks_in_decades((min, max), steps);
        if ticks.len() <= most + 1 {
            return ticks;
        }
    }
    linear_ticks((min, max), most)
}

/// Logarithms of these steps in every decade between the ends.
fn ticks_in_decades((min, max): (f64, f64), steps: &[f64]) -> Vec<f64> {
    let mut ticks = Vec::new();
    for decade in (min.floor() as i32..=max.ceil() as i32).take(40) {
        let of_decade = steps.iter().map(|step| f64::from(decade) + step.log10());
        ticks.extend(of_decade.filter(|tick| (min..=max).contains(tick)));
    }
    ticks
}

/// The lowest and the highest finite number.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |range, x| {
        Some(range.map_or((x, x), |(min, max): (f64, f64)| (min.min(x), max.max(x))))
    })
}

fn padded((min, max): (f64, f64), at_zero: bool) -> (f64, f64) {
    let room = if max > min {
        (max - min) * 0.06
    } else {
        min.abs().max(1e-3) * 0.1
    };
    (if at_zero { min } else { min - room }, max + room)
}

/// 1250000 as 1.25M.
pub fn short(x: f64) -> String {
    let (scaled, unit) = match x.abs() {
        size if size >= 1e9 => (x / 1e9, "B"),
        size if size >= 1e6 => (x / 1e6, "M"),
        size if size >= 1e3 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    let digits = match scaled.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_axes_are_round_numbers() {
        let logarithmic = |min: f64, max: f64| -> Vec<String> {
            log_ticks((min.log10(), max.log10()), 6)
                .into_iter()
                .map(|tick| short(10f64.powf(tick)))
                .collect()
        };
        assert_eq!(logarithmic(0.15, 5.6), ["0.2", "0.5", "1", "2", "5"]);
        assert_eq!(logarithmic(0.15, 80.0), ["0.3", "1", "3", "10", "30"]);
        assert_eq!(logarithmic(0.9e-4, 1.1e3), ["0.0001", "0.01", "1", "100"]);
        let linear = |min: f64, max: f64| -> Vec<String> {
            linear_ticks((min, max), 5).into_iter().map(short).collect()
        };
        assert_eq!(linear(0.0, 41_000.0), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(linear(5.02, 5.31), ["5.1", "5.2", "5.3"]);
        assert_eq!(linear(-1.0, 1.0), ["-1", "-0.5", "0", "0.5", "1"]);
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let texts: Vec<String> = [0.0, 0.5, 12.0, 1250.0, 4e6, 8.03e9, 0.0123]
            .into_iter()
            .map(short)
            .collect();
        assert_eq!(texts, ["0", "0.5", "12", "1.25k", "4M", "8.03B", "0.0123"]);
    }
}
