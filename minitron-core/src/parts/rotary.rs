//! Rotary position embedding as data, and how fast the pairs of channels of a head turn.

use std::f64::consts::PI;

/// Rotary position embedding in the half-split form.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the wavelengths.
    pub theta: f64,
    /// The first `n_rotated` of each head's channels turn, the rest pass.
    pub n_rotated: usize,
    /// Change of the wavelengths for long contexts.
    pub scaling: RotaryScaling,
    /// Factor of the rotated channels (yarn's and longrope's attention factor).
    pub factor: f64,
}

/// Change of the rotary wavelengths.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// As trained first.
    None,
    /// As trained first up to the original positions; a longer sequence has a larger base, by its
    /// length (NTK).
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Positions up to which nothing changes.
        original_max_positions: f64,
    },
    /// All angles divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are short.
        high_freq_factor: f64,
        /// Context of the first training.
        original_max_positions: f64,
    },
    /// Long wavelengths divided by `factor`, short ones kept, a linear passage between, by the
    /// number of turns within the original positions (arXiv 2309.00071).
    Yarn {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Turns from which on a wavelength is short.
        beta_fast: f64,
        /// Turns up to which it is long.
        beta_slow: f64,
        /// Context of the first training.
        original_max_positions: f64,
        /// Whether the ends of the passage are rounded to whole channels.
        truncate: bool,
    },
    /// A divisor for each pair of channels; other ones for sequences longer than the original
    /// positions (arXiv 2402.13753).
    Long {
        /// Up to the original positions.
        short: Vec<f64>,
        /// Beyond them.
        long: Vec<f64>,
        /// Context of the first training.
        original_max_positions: f64,
    },
    /// Not known: whatever turns nothing works, the rest is refused.
    Unsupported {
        /// The key, what is known, and the way out.
        why: String,
    },
}

impl Rotary {
    /// f_k \[R/2\] in a sequence that ends at `end`: channel k turns with channel k + R/2 by the
    /// angle t · f_k at position t, R the number of channels that turn.
    pub fn frequencies(&self, end: f64) -> Vec<f64> {
        let mut frequencies = self.of_base(self.theta);
        match &self.scaling {
            // Those that are not known are refused before.
            RotaryScaling::None | RotaryScaling::Unsupported { .. } => {}
            RotaryScaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            RotaryScaling::Dynamic {
                factor,
                original_max_positions: original,
            } => {
                let stretch = factor * end.max(*original) / original - (factor - 1.0);
                // Of a single pair the exponent has no bound, but its frequency is 1 whatever the
                // base.
                let n = self.n_rotated as f64;
                let exponent = n / (n - 2.0).max(1.0);
                frequencies = self.of_base(self.theta * stretch.powf(exponent));
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions: original,
            } => {
                let ends = [*low_freq_factor, *high_freq_factor];
                for f in &mut frequencies {
                    *f = smoothed(*f, *factor, ends, *original);
                }
            }
            RotaryScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_positions: original,
                truncate,
            } => {
                let (first, span) = self.passage([*beta_fast, *beta_slow], *original, *truncate);
                for (k, f) in frequencies.iter_mut().enumerate() {
                    let share = ((k as f64 - first) / span).clamp(0.0, 1.0);
                    *f = *f / factor * share + *f * (1.0 - share);
                }
            }
            RotaryScaling::Long {
                short,
                long,
                original_max_positions: original,
            } => {
                let divisors = if end > *original { long } else { short };
                frequencies.truncate(divisors.len());
                for (f, divisor) in frequencies.iter_mut().zip(divisors) {
                    *f /= divisor;
                }
            }
        }
        frequencies
    }

    /// base^(-2k/R) for every pair.
    fn of_base(&self, base: f64) -> Vec<f64> {
        let n = self.n_rotated as f64;
        let pairs = 0..self.n_rotated / 2;
        pairs.map(|k| base.powf(-2.0 * k as f64 / n)).collect()
    }

    /// Yarn's passage from short to long wavelengths: its first pair, and how many it spans.
    fn passage(&self, [fast, slow]: [f64; 2], original: f64, truncate: bool) -> (f64, f64) {
        let (mut low, mut high) = (self.pair_of(fast, original), self.pair_of(slow, original));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(self.n_rotated as f64 - 1.0));
        let span = if low == high { 1e-3 } else { high - low };
        (low, span)
    }

    /// The pair that turns so many times within the original positions.
    fn pair_of(&self, turns: f64, original: f64) -> f64 {
        self.n_rotated as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
    }

    /// The divisors of longrope by which so few pairs turn as those that stay: f of the kept ones
    /// is theta^(-2j/R') / divisor, R' the channels that turn then. Up to the original positions,
    /// and beyond.
    pub fn divisors_of(&self, kept: &[usize]) -> [Vec<f64>; 2] {
        let n = 2 * kept.len();
        [0.0, f64::INFINITY].map(|end| {
            let all = self.frequencies(end);
            let mut divisors = Vec::with_capacity(kept.len());
            for (place, &pair) in kept.iter().enumerate() {
                let own = self.theta.powf(-2.0 * place as f64 / n as f64);
                divisors.extend(all.get(pair).map(|frequency| own / frequency));
            }
            divisors
        })
    }
}

/// Llama 3's frequency: of a long wavelength divided, of a short one as it was.
fn smoothed(plain: f64, factor: f64, [low, high]: [f64; 2], original: f64) -> f64 {
    let wavelength = 2.0 * PI / plain;
    if wavelength > original / low {
        plain / factor
    } else if wavelength < original / high {
        plain
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * plain / factor + smooth * plain
    }
}
