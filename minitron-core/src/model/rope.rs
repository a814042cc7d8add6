//! Rotary position embedding, half-split form: channel k turns with channel k + R/2 by the angle t · f_k, where
//! f_k = theta^(-2k/R), R the number of rotated channels. Angles are computed in f64.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::blueprint::{Rotary, RotaryScaling};
use crate::error::Result;

/// f_k [R/2] of the rotated pairs, from which the rotation of any positions is made when it is asked for: a table of all that a
/// config announces would take memory that no text needs.
#[derive(Debug)]
pub(super) struct Frequencies {
    freq_r: Tensor,
    n_rotated: i64,
    device: Device,
    kind: Kind,
}

/// The rotation of one sequence's positions: cos and sin [1, T, 1, R/2].
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    n_rotated: i64,
}

impl Frequencies {
    pub fn new(rotary: &Rotary, device: Device, kind: Kind) -> Result<Self> {
        let frequencies: Vec<f64> = (0..rotary.n_rotated / 2).map(|k| frequency(rotary, k)).collect();
        Ok(Frequencies {
            freq_r: Tensor::f_from_slice(&frequencies)?,
            n_rotated: rotary.n_rotated as i64,
            device,
            kind,
        })
    }

    /// The rotation of `n_tokens` positions from `start` on.
    pub fn at(&self, start: i64, n_tokens: i64) -> Result<Rope> {
        let position_t = Tensor::f_arange_start(start, start.saturating_add(n_tokens), (Kind::Double, Device::Cpu))?;
        let angle_tr = position_t.f_unsqueeze(1)?.f_mul(&self.freq_r.f_unsqueeze(0)?)?;
        let place = |t: Tensor| -> Result<Tensor> {
            Ok(t.f_to_kind(self.kind)?.f_to_device(self.device)?.f_unsqueeze(0)?.f_unsqueeze(2)?)
        };
        Ok(Rope { cos: place(angle_tr.f_cos()?)?, sin: place(angle_tr.f_sin()?)?, n_rotated: self.n_rotated })
    }
}

impl Rope {
    /// Turns x [B, T, H, K].
    pub fn apply(&self, x_bthk: &Tensor) -> Result<Tensor> {
        let half = self.n_rotated / 2;
        let head_dim = x_bthk.size().last().copied().unwrap_or(0);
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

fn frequency(rotary: &Rotary, k: usize) -> f64 {
    let plain = rotary.theta.powf(-2.0 * k as f64 / rotary.n_rotated as f64);
    match rotary.scaling {
        // Those that are not known are refused before.
        RotaryScaling::None | RotaryScaling::Dynamic | RotaryScaling::Unsupported { .. } => plain,
        RotaryScaling::Linear { factor } => plain / factor,
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let wavelength = 2.0 * PI / plain;
            if wavelength > original_max_positions / low_freq_factor {
                plain / factor
            } else if wavelength < original_max_positions / high_freq_factor {
                plain
            } else {
                let span = high_freq_factor - low_freq_factor;
                let smooth = (original_max_positions / wavelength - low_freq_factor) / span;
                (1.0 - smooth) * plain / factor + smooth * plain
            }
        }
    }
}
