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
        let n = self.n_rotated;
        let power = |base: f64, k: usize| base.powf(-2.0 * k as f64 / n as f64);
        let plain = |k: usize| power(self.theta, k);
        let pairs = 0..n / 2;
        match &self.scaling {
            // Those that are not known are refused before.
            RotaryScaling::None | RotaryScaling::Unsupported { .. } => pairs.map(plain).collect(),
            RotaryScaling::Linear { factor } => pairs.map(|k| plain(k) / factor).collect(),
            RotaryScaling::Dynamic {
                factor,
                original_max_positions,
            } => {
                let stretch = factor * end.max(*original_max_positions) / original_max_positions
                    - (factor - 1.0);
                // Of a single pair the exponent has no bound, but its frequency is 1 whatever the
                // base.
                let exponent = n as f64 / (n as f64 - 2.0).max(1.0);
                pairs
                    .map(|k| power(self.theta * stretch.powf(exponent), k))
                    .collect()
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let smoothed = |k: usize| {
                    let wavelength = 2.0 * PI / plain(k);
                    if wavelength > original_max_positions / low_freq_factor {
                        plain(k) / factor
                    } else if wavelength < original_max_positions / high_freq_factor {
                        plain(k)
                    } else {
                        let span = high_freq_factor - low_freq_factor;
                        let smooth = (original_max_positions / wavelength - low_freq_factor) / span;
                        (1.0 - smooth) * plain(k) / factor + smooth * plain(k)
                    }
                };
                pairs.map(smoothed).collect()
            }
            RotaryScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_positions,
                truncate,
            } => {
                // The pair that turns so many times within the original positions.
                let pair_of = |turns: f64| {
                    n as f64 * (original_max_positions / (turns * 2.0 * PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(n as f64 - 1.0));
                let span = if low == high { 1e-3 } else { high - low };
                let stretched = |k: usize| ((k as f64 - low) / span).clamp(0.0, 1.0);
                pairs
                    .map(|k| plain(k) / factor * stretched(k) + plain(k) * (1.0 - stretched(k)))
                    .collect()
            }
            RotaryScaling::Long {
                short,
                long,
                original_max_positions,
            } => {
                let divisors = if end > *original_max_positions {
                    long
                } else {
                    short
                };
                pairs
                    .zip(divisors)
                    .map(|(k, divisor)| plain(k) / divisor)
                    .collect()
            }
        }
    }

    /// The divisors of longrope by which so few pairs turn as those that stay: f of the kept ones
    /// is theta^(-2j/R') / divisor, R' the channels that turn then. Up to the original positions,
    /// and beyond.
    pub fn divisors_of(&self, kept: &[usize]) -> [Vec<f64>; 2] {
        let n = 2 * kept.len();
        [0.0, f64::INFINITY].map(|end| {
            let all = self.frequencies(end);
            let of = |(place, &pair): (usize, &usize)| {
                let own = self.theta.powf(-2.0 * place as f64 / n as f64);
                all.get(pair).map(|frequency| own / frequency)
            };
            kept.iter().enumerate().filter_map(of).collect()
        })
    }
}
