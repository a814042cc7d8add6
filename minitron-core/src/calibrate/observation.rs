//! What a scorer is shown.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Site;
use crate::error::{Error, Result};

/// One thing that a metric asked for.
#[derive(Debug)]
pub enum Observation<'a> {
    /// One site of one batch.
    Activations(Activations<'a>),
    /// Some weights of some units.
    Weights(Weights<'a>),
    /// Some predictions of the model without some layers.
    Ablated(Ablated<'a>),
    /// The last hidden states of the model without some layers.
    AblatedStates(AblatedStates<'a>),
    /// A measurement of the model without some layers.
    Measured(Measured),
}

impl<'a> Observation<'a> {
    fn name(&self) -> &'static str {
        match self {
            Observation::Activations(_) => "activations",
            Observation::Weights(_) => "weights",
            Observation::Ablated(_) => "predictions of an ablated model",
            Observation::AblatedStates(_) => "states of an ablated model",
            Observation::Measured(_) => "a measurement of an ablated model",
        }
    }

    fn wrong<T>(&self, asked: &str) -> Result<T> {
        Err(Error::Internal(format!(
            "a scorer that asked for {asked} was shown {}",
            self.name()
        )))
    }

    /// The activations, for a scorer that asked for sites.
    pub fn activations(&self) -> Result<&Activations<'a>> {
        match self {
            Observation::Activations(seen) => Ok(seen),
            _ => self.wrong("activations"),
        }
    }

    /// The weights, for a scorer that asked for weights or gradients.
    pub fn weights(&self) -> Result<&Weights<'a>> {
        match self {
            Observation::Weights(seen) => Ok(seen),
            _ => self.wrong("weights"),
        }
    }

    /// The predictions, for a scorer that asked for ablations.
    pub fn ablated(&self) -> Result<&Ablated<'a>> {
        match self {
            Observation::Ablated(seen) => Ok(seen),
            _ => self.wrong("ablations"),
        }
    }

    /// The states, for a scorer that asked for ablated states.
    pub fn ablated_states(&self) -> Result<&AblatedStates<'a>> {
        match self {
            Observation::AblatedStates(seen) => Ok(seen),
            _ => self.wrong("ablated states"),
        }
    }

    /// The measurement, for a scorer that asked for measurements.
    pub fn measured(&self) -> Result<&Measured> {
        match self {
            Observation::Measured(seen) => Ok(seen),
            _ => self.wrong("measurements"),
        }
    }
}

/// Weights that carry some of a group's units: of one tensor or a part of one. U units, I numbers
/// of each.
#[derive(Debug)]
pub struct Weights<'a> {
    /// Which units.
    pub units: Range<usize>,
    /// Whether they are what the tensor reads: its columns, I = rows · block with a unit's channels
    /// innermost.
    pub reads: bool,
    /// Their weights [U, I], f32.
    pub weight_ui: &'a Tensor,
    /// The loss's gradient, likewise, where it was asked for.
    pub gradient_ui: Option<&'a Tensor>,
}

/// Some predictions without some layers. N rows, V vocab.
#[derive(Debug)]
pub struct Ablated<'a> {
    /// The layers left out.
    pub layers: Range<usize>,
    /// Logits [N, V].
    pub logits_nv: &'a Tensor,
    /// Right answers \[N\].
    pub labels_n: &'a Tensor,
}

/// What a head would read of one batch, with all layers and without some. B batch, T tokens, E
/// embed.
#[derive(Debug)]
pub struct AblatedStates<'a> {
    /// The layers left out.
    pub layers: Range<usize>,
    /// The whole model's [B, T, E].
    pub whole_bte: &'a Tensor,
    /// Those without the layers [B, T, E].
    pub without_bte: &'a Tensor,
}

/// A measurement without some layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The layers left out.
    pub layers: Range<usize>,
    /// What was measured.
    pub value: f64,
}

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

/// One site of one batch, with per-window statistics computed once for all metrics. B batch, T
/// tokens, U units, C = U · block channels.
#[derive(Debug)]
pub struct Activations<'a> {
    /// Where they were read.
    pub site: Site,
    /// [B, T, C].
    pub x_btc: &'a Tensor,
    /// The other end of [`Site::LayerSpan`], [B, T, C].
    pub before_btc: Option<&'a Tensor>,
    stats: RefCell<HashMap<(SequenceStat, usize), Vec<f64>>>,
}

impl<'a> Activations<'a> {
    /// Of one site.
    pub fn new(site: Site, x_btc: &'a Tensor) -> Self {
        Self::between(site, x_btc, None)
    }

    /// Of one site, with the other end where it is a run of layers.
    pub fn between(site: Site, x_btc: &'a Tensor, before_btc: Option<&'a Tensor>) -> Self {
        Activations {
            site,
            x_btc,
            before_btc,
            stats: RefCell::default(),
        }
    }

    /// Of both ends of a run of layers.
    pub fn across(
        first: usize,
        span: usize,
        before_btc: &'a Tensor,
        after_btc: &'a Tensor,
    ) -> Self {
        Self::between(Site::LayerSpan { first, span }, after_btc, Some(before_btc))
    }

    /// The statistic of each window and unit, [B, U] row-major in f64; units of several channels
    /// enter as the L2 norm over them. Computed in f32, once per statistic however many metrics
    /// ask.
    pub fn per_window(&self, stat: SequenceStat, block: usize) -> Result<Vec<f64>> {
        if let Some(found) = self.stats.borrow().get(&(stat, block)) {
            return Ok(found.clone());
        }
        let x = self.x_btc.f_to_kind(Kind::Float)?;
        let x_btu = if block == 1 {
            x
        } else {
            unit_norms(&x, block as i64)?
        };
        let stat_bu = match stat {
            SequenceStat::Mean => {
                x_btu
                    .f_abs()?
                    .f_mean_dim([1i64].as_slice(), false, Kind::Float)?
            }
            SequenceStat::L2 => x_btu
                .f_square()?
                .f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?
                .f_sqrt()?,
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
    Ok(x_btuk
        .f_square()?
        .f_sum_dim_intlist([3i64].as_slice(), false, Kind::Float)?
        .f_sqrt()?)
}

/// A tensor's elements in row-major order.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Double)?
        .f_reshape([-1i64])?;
    Ok(Vec::<f64>::try_from(&flat)?)
}
