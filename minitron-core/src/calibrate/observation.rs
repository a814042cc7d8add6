//! What a scorer is shown: one site of one batch, with per-window statistics computed once for all metrics.

use std::cell::RefCell;
use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Site;
use crate::error::Result;

/// How a window's tokens become one number per unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SequenceStat {
    /// mean over tokens of |x|
    Mean,
    /// sqrt of the sum over tokens of x²
    L2,
    /// population variance over tokens of x
    Var,
}

/// One site of one batch. B batch, T tokens, U units, C = U · block channels.
#[derive(Debug)]
pub struct Observation<'a> {
    /// Where it was read.
    pub site: Site,
    /// Activations, [B, T, C].
    pub x_btc: &'a Tensor,
    stats: RefCell<HashMap<(SequenceStat, usize), Vec<f64>>>,
}

impl<'a> Observation<'a> {
    /// Wraps a site's activations.
    pub fn new(site: Site, x_btc: &'a Tensor) -> Self {
        Observation { site, x_btc, stats: RefCell::default() }
    }

    /// The statistic of each window and unit, [B, U] row-major in f64; units of several channels enter as the L2 norm over
    /// them. Computed in f32, once per statistic however many metrics ask.
    pub fn per_window(&self, stat: SequenceStat, block: usize) -> Result<Vec<f64>> {
        if let Some(found) = self.stats.borrow().get(&(stat, block)) {
            return Ok(found.clone());
        }
        let x = self.x_btc.f_to_kind(Kind::Float)?;
        let x_btu = if block == 1 { x } else { unit_norms(&x, block as i64)? };
        let stat_bu = match stat {
            SequenceStat::Mean => x_btu.f_abs()?.f_mean_dim([1i64].as_slice(), false, Kind::Float)?,
            SequenceStat::L2 => x_btu.f_square()?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?.f_sqrt()?,
            SequenceStat::Var => x_btu.f_var_correction([1i64].as_slice(), 0, false)?,
        };
        let flat = to_vec(&stat_bu)?;
        self.stats.borrow_mut().insert((stat, block), flat.clone());
        Ok(flat)
    }
}

fn unit_norms(x_btc: &Tensor, block: i64) -> Result<Tensor> {
    let (n_batch, n_tokens, n_channels) = x_btc.size3()?;
    let x_btuk = x_btc.f_reshape([n_batch, n_tokens, n_channels / block, block])?;
    Ok(x_btuk.f_square()?.f_sum_dim_intlist([3i64].as_slice(), false, Kind::Float)?.f_sqrt()?)
}

/// A tensor's elements in row-major order.
pub(crate) fn to_vec(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_reshape([-1i64])?;
    Ok(Vec::<f64>::try_from(&flat)?)
}
