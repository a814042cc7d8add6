//! Rotary position embedding, half-split form: channel k turns with channel k + R/2 by the angle t
//! · f_k, where f_k = theta^(-2k/R), R the number of rotated channels. Angles are computed in f64.

use tch::{Device, Kind, Tensor};

use crate::error::{Present, Result};
use crate::parts::Rotary;

/// The rotation of one sequence's positions: cos and sin [1, T, 1, R/2], made when it is asked for,
/// since a table of all positions that a config announces would take memory that no text needs.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    n_rotated: i64,
}

impl Rope {
    /// Of `n_tokens` positions from `start` on.
    pub fn at(
        rotary: &Rotary,
        start: i64,
        n_tokens: i64,
        device: Device,
        kind: Kind,
    ) -> Result<Rope> {
        let end = start.saturating_add(n_tokens);
        let freq_r = Tensor::f_from_slice(&rotary.frequencies(end as f64))?;
        let position_t = Tensor::f_arange_start(start, end, (Kind::Double, Device::Cpu))?;
        let angle_tr = position_t.f_unsqueeze(1)?.f_mul(&freq_r.f_unsqueeze(0)?)?;
        let (mut cos, mut sin) = (angle_tr.f_cos()?, angle_tr.f_sin()?);
        if rotary.factor != 1.0 {
            cos = cos.f_mul_scalar(rotary.factor)?;
            sin = sin.f_mul_scalar(rotary.factor)?;
        }
        Ok(Rope {
            cos: beside_heads(cos, device, kind)?,
            sin: beside_heads(sin, device, kind)?,
            n_rotated: rotary.n_rotated as i64,
        })
    }

    /// Turns x [B, T, H, K].
    pub fn apply(&self, x_bthk: &Tensor) -> Result<Tensor> {
        let half = self.n_rotated / 2;
        let head_dim = x_bthk
            .size()
            .last()
            .copied()
            .present("channels of a head")?;
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

/// [T, R] to [1, T, 1, R].
fn beside_heads(x_tr: Tensor, device: Device, kind: Kind) -> Result<Tensor> {
    let placed = x_tr.f_to_kind(kind)?.f_to_device(device)?;
    Ok(placed.f_unsqueeze(0)?.f_unsqueeze(2)?)
}
