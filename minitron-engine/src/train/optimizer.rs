//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101): weight decay apart from the adaptive step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::shard::{Cut, Divided, Shard};
use super::sharded::{Apart, ShardedLayers};
use crate::ranks::Ranks;
use minitron_core::error::Result;
use minitron_core::model::Parameter;

/// Elements handled at a time: in-place operations over such a block stay in the cache.
const BLOCK: i64 = 1 << 18;

/// Constants of the update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of matrices and tables towards zero; gains and biases are left alone.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        AdamWSettings {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
        }
    }
}

/// Weights in f32 by name, where the model computes in less.
pub type MasterWeights = BTreeMap<String, Tensor>;

/// Moments and masters, f32 whatever the model computes in.
///
/// ```text
/// m ← β1·m + (1 − β1)·g        v ← β2·v + (1 − β2)·g²
/// w ← w·(1 − lr·λ) − lr · (m / (1 − β1ᵗ)) / (sqrt(v / (1 − β2ᵗ)) + ε)
/// ```
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    pub(super) n_steps: u64,
    pub(super) states: Vec<State>,
    pub(super) shard: Shard,
    /// Each group's learning rate as a share of the one that a step is told.
    rates: Vec<f64>,
}

#[derive(Debug)]
pub(super) struct State {
    pub name: String,
    /// The model's own tensor.
    pub weight: Tensor,
    /// The rank's values of it and their gradient, where the model has them while it runs alone.
    pub apart: Option<Apart>,
    /// Which values the rank keeps.
    pub cut: Cut,
    /// The same in f32, where the model computes in less; of moments and masters there are the
    /// values of the rank's part alone.
    pub master: Option<Tensor>,
    pub m: Tensor,
    pub v: Tensor,
    decays: bool,
    pub group: usize,
    layer: Option<usize>,
}

impl State {
    /// The layer that it belongs to, of a group's model.
    pub fn layer_in(&self, group: usize) -> Option<usize> {
        self.layer.filter(|_| self.group == group)
    }

    /// Whether its gradient is summed elsewhere.
    pub fn is_apart(&self) -> bool {
        self.apart.is_some()
    }

    /// The rank's values.
    pub fn own(&self) -> Result<Tensor> {
        match &self.apart {
            Some(apart) => Ok(apart.weight.shallow_clone()),
            None => self.cut.own(&self.weight.f_detach()?),
        }
    }

    /// Their gradient, where there is one.
    fn own_gradient(&self) -> Result<Option<Tensor>> {
        if let Some(apart) = &self.apart {
            return Ok(Some(apart.gradient.shallow_clone()));
        }
        let gradient = self.weight.f_grad()?;
        match gradient.defined() {
            true => Ok(Some(self.cut.own(&gradient.f_detach()?.f_contiguous()?)?)),
            false => Ok(None),
        }
    }

    /// Takes the gradient away.
    fn clear_gradient(&self) -> Result<()> {
        let mut gradient = match &self.apart {
            Some(apart) => apart.gradient.shallow_clone(),
            None => self.weight.f_grad()?,
        };
        if gradient.defined() {
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }
}

impl AdamW {
    /// Moments at zero for every parameter that takes gradients.
    pub fn new<'p>(
        parameters: impl IntoIterator<Item = &'p Parameter>,
        settings: AdamWSettings,
    ) -> Result<Self> {
        Self::divided(parameters, settings, (Shard::whole(), None))
    }

    /// The same of a rank's part of every parameter. All gradients are at hand on all ranks, each
    /// updates its part, and brings the parts together: the weights are those of one process, bit
    /// by bit. Those of sharded layers stay apart, and so do their gradients.
    pub fn divided<'p>(
        parameters: impl IntoIterator<Item = &'p Parameter>,
        settings: AdamWSettings,
        (shard, layers): (Shard, Option<&ShardedLayers>),
    ) -> Result<Self> {
        let mut optimizer = AdamW {
            settings,
            n_steps: 0,
            states: Vec::new(),
            shard,
            rates: Vec::new(),
        };
        optimizer.add_group("", parameters, (1.0, layers))?;
        Ok(optimizer)
    }

    /// Parameters of another model, whose gradients are measured and scaled apart and whose names
    /// begin with `prefix`.
    pub fn add_group<'p>(
        &mut self,
        prefix: &str,
        parameters: impl IntoIterator<Item = &'p Parameter>,
        (rate, layers): (f64, Option<&ShardedLayers>),
    ) -> Result<()> {
        let group = self.rates.len();
        self.rates.push(rate);
        for parameter in parameters {
            let weight = parameter.tensor.shallow_clone();
            let apart = match layers {
                Some(layers) => layers.apart(&parameter.name)?,
                None => None,
            };
            let (cut, own) = match &apart {
                Some(apart) => (apart.cut, apart.weight.shallow_clone()),
                None => {
                    let cut = self.shard.cut(&weight);
                    (cut, cut.own(&weight.f_detach()?)?)
                }
            };
            let master = match weight.f_kind()? {
                Kind::Float => None,
                _ => Some(own.f_to_kind(Kind::Float)?),
            };
            let (m, v) = (zeros_like(&own)?, zeros_like(&own)?);
            let name = format!("{prefix}{}", parameter.name);
            self.states.push(State {
                name,
                weight,
                apart,
                cut,
                master,
                m,
                v,
                decays: parameter.decays,
                group,
                layer: parameter.layer,
            });
        }
        Ok(())
    }

    /// L2 norm of all gradients of a group; of those that lie apart, all ranks bring their parts.
    pub fn gradient_norm(&self, group: usize, ranks: Ranks) -> Result<f64> {
        let (mut sum, mut own) = (0.0, [0.0]);
        for state in self.states.iter().filter(|state| state.group == group) {
            match &state.apart {
                Some(apart) => own[0] += squared(&apart.gradient)?,
                None => {
                    let gradient = state.weight.f_grad()?;
                    if gradient.defined() {
                        sum += squared(&gradient.f_detach()?)?;
                    }
                }
            }
        }
        if self.states.iter().any(State::is_apart) {
            ranks.add_up(&mut own)?;
        }
        Ok((sum + own[0]).sqrt())
    }

    /// One update from gradients times their group's scale; the gradients are cleared.
    pub fn step(&mut self, lr: f64, gradient_scales: &[f64], ranks: Ranks) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.n_steps += 1;
        let mut updated = Vec::new();
        for state in &self.states {
            let Some(gradient) = state.own_gradient()? else {
                continue;
            };
            let own = state.own()?;
            let gradient = gradient.f_to_kind(Kind::Float)?.f_view([-1i64])?;
            let scale = gradient_scales.get(state.group).copied().unwrap_or(1.0);
            let lr = lr * self.rates.get(state.group).copied().unwrap_or(1.0);
            let changed = state.master.as_ref().unwrap_or(&own);
            update(
                state,
                changed,
                &gradient,
                self.settings,
                self.n_steps,
                (lr, scale),
            )?;
            if let Some(master) = &state.master {
                own.shallow_clone().f_copy_(master)?;
            }
            state.clear_gradient()?;
            if state.apart.is_none() {
                let (whole, cut) = (state.weight.f_detach()?, state.cut);
                updated.push(Divided { whole, own, cut });
            }
        }
        match self.shard.is_whole() {
            true => Ok(()),
            false => self.shard.unite(ranks, &updated),
        }
    }

    /// Leaves weights and moments as they are, and takes the gradients away.
    pub fn skip(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.states.iter().try_for_each(State::clear_gradient)
    }

    /// Models whose parameters are measured and scaled apart.
    pub(super) fn n_groups(&self) -> usize {
        self.rates.len()
    }

    /// Which part of every tensor this keeps the state of.
    pub fn shard(&self) -> Shard {
        self.shard
    }
}

/// The square of the L2 norm.
fn squared(gradient: &Tensor) -> Result<f64> {
    let norm = gradient
        .f_to_kind(Kind::Float)?
        .f_norm()?
        .f_double_value(&[])?;
    Ok(norm * norm)
}

/// In f32, whatever a weight is in.
fn zeros_like(weight: &Tensor) -> Result<Tensor> {
    let options = (Kind::Float, weight.device());
    Ok(Tensor::f_zeros(weight.size(), options)?)
}

fn update(
    state: &State,
    weight: &Tensor,
    g: &Tensor,
    s: AdamWSettings,
    n_steps: u64,
    (lr, gradient_scale): (f64, f64),
) -> Result<()> {
    let correction1 = 1.0 - s.beta1.powf(n_steps as f64);
    let correction2 = 1.0 - s.beta2.powf(n_steps as f64);
    let weight = weight.f_view([-1i64])?;
    let (m, v) = (state.m.f_view([-1i64])?, state.v.f_view([-1i64])?);
    let n = g.numel() as i64;
    for start in (0..n).step_by(BLOCK as usize) {
        let len = BLOCK.min(n - start);
        let block = |t: &Tensor| t.f_narrow(0, start, len);
        let g = block(g)?.f_mul_scalar(gradient_scale)?;
        let (mut w, mut m, mut v) = (block(&weight)?, block(&m)?, block(&v)?);
        let _ = m.f_lerp_(&g, 1.0 - s.beta1)?;
        let _ = v.f_lerp_(&g.f_square()?, 1.0 - s.beta2)?;
        let denominator = v
            .f_div_scalar(correction2)?
            .f_sqrt_()?
            .f_add_scalar_(s.eps)?;
        if state.decays {
            let _ = w.f_mul_scalar_(1.0 - lr * s.weight_decay)?;
        }
        let step = m.f_div(&denominator)?.f_mul_scalar_(lr / correction1)?;
        let _ = w.f_sub_(&step)?;
    }
    Ok(())
}
