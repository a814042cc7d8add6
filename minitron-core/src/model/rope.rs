//! Rotary position embedding, half-split form: channel k turns with channel k + R/2 by the angle t · f_k, where
//! f_k = theta^(-2k/R), R the number of rotated channels. Angles are computed in f64.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::blueprint::{Rotary, RotaryScaling};
use crate::error::{Present, Result};

/// The rotation of one sequence's positions: cos and sin [1, T, 1, R/2], made when it is asked for, since a table of all
/// positions that a config announces would take memory that no text needs.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    n_rotated: i64,
}

impl Rope {
    /// Of `n_tokens` positions from `start` on.
    pub(super) fn at(rotary: &Rotary, start: i64, n_tokens: i64, device: Device, kind: Kind) -> Result<Rope> {
        let end = start.saturating_add(n_tokens);
        let freq_r = Tensor::f_from_slice(&frequencies(rotary, end as f64))?;
        let position_t = Tensor::f_arange_start(start, end, (Kind::Double, Device::Cpu))?;
        let angle_tr = position_t.f_unsqueeze(1)?.f_mul(&freq_r.f_unsqueeze(0)?)?;
        let place = |t: Tensor| -> Result<Tensor> {
            let t = if rotary.factor == 1.0 { t } else { t.f_mul_scalar(rotary.factor)? };
            Ok(t.f_to_kind(kind)?.f_to_device(device)?.f_unsqueeze(0)?.f_unsqueeze(2)?)
        };
        let n_rotated = rotary.n_rotated as i64;
        Ok(Rope { cos: place(angle_tr.f_cos()?)?, sin: place(angle_tr.f_sin()?)?, n_rotated })
    }

    /// Turns x [B, T, H, K].
    pub fn apply(&self, x_bthk: &Tensor) -> Result<Tensor> {
        let half = self.n_rotated / 2;
        let head_dim = x_bthk.size().last().copied().present("channels of a head")?;
        let first = x_bthk.f_narrow(3, 0, half)?;
        let second = x_bthk.f_narrow(3, half, half)?;
        let turned_first = first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?;
        let turned_second = second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?;
        let mut parts = vec![turned_first, turned_second];
        if head_dim > self.n_rotated {
            parts.push(x_bthk.f_narrow(3, self.n_rotated, head_dim - self.n_rotated)?);
        }
        Ok(Tensor::f_cat(&parts, 3)?)
    }
}

/// f_k \[R/2\] in a sequence that ends at `end`.
fn frequencies(rotary: &Rotary, end: f64) -> Vec<f64> {
    let n = rotary.n_rotated;
    let power = |base: f64, k: usize| base.powf(-2.0 * k as f64 / n as f64);
    let plain = |k: usize| power(rotary.theta, k);
    let pairs = 0..n / 2;
    match &rotary.scaling {
        // Those that are not known are refused before.
        RotaryScaling::None | RotaryScaling::Unsupported { .. } => pairs.map(plain).collect(),
        RotaryScaling::Linear { factor } => pairs.map(|k| plain(k) / factor).collect(),
        RotaryScaling::Dynamic { factor, original_max_positions } => {
            let stretch = factor * end.max(*original_max_positions) / original_max_positions - (factor - 1.0);
            // Of a single pair the exponent has no bound, but its frequency is 1 whatever the base.
            let exponent = n as f64 / (n as f64 - 2.0).max(1.0);
            pairs.map(|k| power(rotary.theta * stretch.powf(exponent), k)).collect()
        }
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
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
        RotaryScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate } => {
            // The pair that turns so many times within the original positions.
            let pair_of =
                |turns: f64| n as f64 * (original_max_positions / (turns * 2.0 * PI)).ln() / (2.0 * rotary.theta.ln());
            let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(n as f64 - 1.0));
            let span = if low == high { 1e-3 } else { high - low };
            let stretched = |k: usize| ((k as f64 - low) / span).clamp(0.0, 1.0);
            pairs.map(|k| plain(k) / factor * stretched(k) + plain(k) * (1.0 - stretched(k))).collect()
        }
        RotaryScaling::Long { short, long, original_max_positions } => {
            let divisors = if end > *original_max_positions { long } else { short };
            pairs.zip(divisors).map(|(k, divisor)| plain(k) / divisor).collect()
        }
    }
}
