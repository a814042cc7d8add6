//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101): weight decay apart from the adaptive step.

use minitron_torch::{AdamWLists, AdamWStep, foreach_copy, foreach_zero, fused_adamw};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use minitron_core::error::Result;

/// Elements that a CPU handles at a time: in-place operations over such a block stay in the cache.
const BLOCK: i64 = 1 << 18;
/// Elements that a GPU is given at a time, which bounds what gradients take in f32.
const LIST: usize = 1 << 26;

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

/// One tensor's part in an update:
///
/// ```text
/// m ← β1·m + (1 − β1)·g        v ← β2·v + (1 − β2)·g²
/// w ← w·(1 − lr·λ) − lr · (m / (1 − β1ᵗ)) / (sqrt(v / (1 − β2ᵗ)) + ε)
/// ```
#[derive(Debug)]
pub(super) struct Update {
    /// What is changed of the model's own tensor.
    pub own: Tensor,
    /// The same in f32, where the model computes in less.
    pub master: Option<Tensor>,
    /// First moments, f32.
    pub m: Tensor,
    /// Second moments, f32.
    pub v: Tensor,
    /// The gradient, which is cleared.
    pub gradient: Tensor,
    /// What of it belongs to `own`, dense.
    pub own_gradient: Tensor,
    /// Whether the weights decay.
    pub decays: bool,
    /// Learning rate.
    pub lr: f64,
    /// What the gradient is multiplied by first.
    pub scale: f64,
}

impl Update {
    fn weight(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.own)
    }

    /// Whether two are made with the same constants.
    fn is_like(&self, other: &Update) -> bool {
        (self.lr, self.scale, self.decays) == (other.lr, other.scale, other.decays)
            && self.own.device() == other.own.device()
    }
}

/// Makes all updates, the `n_steps`th of each, and clears the gradients: one after the other on a
/// CPU, in lists elsewhere.
pub(super) fn update_all(updates: &[Update], s: AdamWSettings, n_steps: u64) -> Result<()> {
    let mut elsewhere = Vec::new();
    for update in updates {
        match update.own.device() {
            Device::Cpu => update_one(update, s, n_steps)?,
            _ => elsewhere.push(update),
        }
    }
    update_fused(&elsewhere, s, n_steps)
}

fn update_one(update: &Update, s: AdamWSettings, n_steps: u64) -> Result<()> {
    let gradient = update.own_gradient.f_to_kind(Kind::Float)?;
    update_in_blocks(update, &gradient.f_view([-1i64])?, s, n_steps)?;
    if let Some(master) = &update.master {
        update.own.shallow_clone().f_copy_(master)?;
    }
    let _ = update.gradient.shallow_clone().f_zero_()?;
    Ok(())
}

fn update_in_blocks(update: &Update, g: &Tensor, s: AdamWSettings, n_steps: u64) -> Result<()> {
    let correction1 = 1.0 - s.beta1.powf(n_steps as f64);
    let correction2 = 1.0 - s.beta2.powf(n_steps as f64);
    let weight = update.weight().f_view([-1i64])?;
    let (m, v) = (update.m.f_view([-1i64])?, update.v.f_view([-1i64])?);
    let n = g.numel() as i64;
    for start in (0..n).step_by(BLOCK as usize) {
        let len = BLOCK.min(n - start);
        let block = |t: &Tensor| t.f_narrow(0, start, len);
        let g = block(g)?.f_mul_scalar(update.scale)?;
        let (mut w, mut m, mut v) = (block(&weight)?, block(&m)?, block(&v)?);
        let _ = m.f_lerp_(&g, 1.0 - s.beta1)?;
        let _ = v.f_lerp_(&g.f_square()?, 1.0 - s.beta2)?;
        let denominator = v
            .f_div_scalar(correction2)?
            .f_sqrt_()?
            .f_add_scalar_(s.eps)?;
        if update.decays {
            let _ = w.f_mul_scalar_(1.0 - update.lr * s.weight_decay)?;
        }
        let step = m
            .f_div(&denominator)?
            .f_mul_scalar_(update.lr / correction1)?;
        let _ = w.f_sub_(&step)?;
    }
    Ok(())
}

/// The same by kernels that take lists of tensors. Equal to it up to rounding.
pub(super) fn update_fused(updates: &[&Update], s: AdamWSettings, n_steps: u64) -> Result<()> {
    let mut left = updates.to_vec();
    while let Some(first) = left.first().copied() {
        let (alike, others) = left.into_iter().partition(|update| update.is_like(first));
        left = others;
        let alike: Vec<&Update> = alike;
        let mut rest = alike.as_slice();
        while !rest.is_empty() {
            let (list, further) = rest.split_at(n_in_list(rest));
            update_list(list, s, n_steps)?;
            rest = further;
        }
    }
    Ok(())
}

/// As many as are given at a time, one at least.
fn n_in_list(updates: &[&Update]) -> usize {
    let mut n_values = 0_usize;
    let fitting = updates.iter().take_while(|update| {
        n_values = n_values.saturating_add(update.own.numel());
        n_values <= LIST
    });
    fitting.count().max(1)
}

/// Of one device, learning rate, scale and decay.
fn update_list(updates: &[&Update], s: AdamWSettings, n_steps: u64) -> Result<()> {
    let Some(first) = updates.first() else {
        return Ok(());
    };
    let device = first.own.device();
    let (mut weights, mut gradients) = (Vec::new(), Vec::new());
    let (mut ms, mut vs) = (Vec::new(), Vec::new());
    let (mut wide, mut narrow) = (Vec::new(), Vec::new());
    for update in updates {
        weights.push(update.weight().f_view([-1i64])?);
        ms.push(update.m.f_view([-1i64])?);
        vs.push(update.v.f_view([-1i64])?);
        let own = update.own_gradient.f_view([-1i64])?;
        if own.f_kind()? == Kind::Float {
            gradients.push(own);
        } else {
            let copy = Tensor::f_empty(own.size(), (Kind::Float, device))?;
            gradients.push(copy.shallow_clone());
            wide.push(copy);
            narrow.push(own);
        }
    }
    foreach_copy(&wide, &narrow)?;
    // Filled on the device: nobody waits for it.
    let divisor = Tensor::f_full([1i64], 1.0 / first.scale, (Kind::Float, device))?;
    let lists = AdamWLists {
        weights: &weights,
        gradients: &gradients,
        ms: &ms,
        vs: &vs,
        divisor: (first.scale != 1.0).then_some(&divisor),
    };
    let step = AdamWStep {
        lr: first.lr,
        beta1: s.beta1,
        beta2: s.beta2,
        weight_decay: if first.decays { s.weight_decay } else { 0.0 },
        eps: s.eps,
        n_steps,
    };
    fused_adamw(lists, step)?;
    let (mut into, mut from, mut cleared) = (Vec::new(), Vec::new(), Vec::new());
    for update in updates {
        if let Some(master) = &update.master {
            into.push(update.own.shallow_clone());
            from.push(master.shallow_clone());
        }
        cleared.push(update.gradient.shallow_clone());
    }
    foreach_copy(&into, &from)?;
    Ok(foreach_zero(&cleared)?)
}
