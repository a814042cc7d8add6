//! One layer: attention and MLP around the residual stream.

use tch::Tensor;

use super::attention::Attention;
use super::cache::LayerCache;
use super::layers::{Linear, Norm, activate};
use super::rope::Rope;
use super::tap::{Site, Tap};
use super::weights::Weights;
use crate::blueprint::{Activation, NormPlace, Role};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Block {
    layer_idx: usize,
    norm_place: NormPlace,
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

#[derive(Debug)]
struct Mlp {
    layer_idx: usize,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Block {
    pub fn load(weights: &mut Weights, layer_idx: usize) -> Result<Self> {
        let layer = Some(layer_idx);
        Ok(Block {
            layer_idx,
            norm_place: weights.blueprint.options.norm_place,
            attention_norm: weights.norm(Role::AttentionNorm, layer)?,
            attention: Attention::load(weights, layer_idx)?,
            mlp_norm: weights.norm(Role::MlpNorm, layer)?,
            mlp: Mlp {
                layer_idx,
                gate: weights.linear_opt(Role::Gate, layer)?,
                up: weights.linear(Role::Up, layer)?,
                down: weights.linear(Role::Down, layer)?,
                activation: weights.blueprint.options.activation,
            },
        })
    }

    /// x [B, T, E] to [B, T, E].
    pub fn forward(
        &self,
        x_bte: &Tensor,
        rope: Option<&Rope>,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        match self.norm_place {
            NormPlace::Pre => {
                let normed = self.attention_norm.forward(x_bte)?;
                show(tap, Site::AttentionInput(self.layer_idx), &normed)?;
                let middle_bte = x_bte.f_add(&self.attention.forward(&normed, rope, tap, cache)?)?;
                let normed = self.mlp_norm.forward(&middle_bte)?;
                show(tap, Site::MlpInput(self.layer_idx), &normed)?;
                Ok(middle_bte.f_add(&self.mlp.forward(&normed, tap)?)?)
            }
            NormPlace::Post => {
                show(tap, Site::AttentionInput(self.layer_idx), x_bte)?;
                let sum = x_bte.f_add(&self.attention.forward(x_bte, rope, tap, cache)?)?;
                let middle_bte = self.attention_norm.forward(&sum)?;
                show(tap, Site::MlpInput(self.layer_idx), &middle_bte)?;
                self.mlp_norm.forward(&middle_bte.f_add(&self.mlp.forward(&middle_bte, tap)?)?)
            }
        }
    }
}

impl Mlp {
    fn forward(&self, x_bte: &Tensor, tap: &mut dyn Tap) -> Result<Tensor> {
        let first = self.gate.as_ref().unwrap_or(&self.up).forward(x_bte)?;
        show(tap, Site::MlpPreActivation(self.layer_idx), &first)?;
        let activated = activate(&first, self.activation)?;
        let inner_btf = match self.gate {
            Some(_) => activated.f_mul(&self.up.forward(x_bte)?)?,
            None => activated,
        };
        show(tap, Site::MlpNeurons(self.layer_idx), &inner_btf)?;
        self.down.forward(&inner_btf)
    }
}

fn show(tap: &mut dyn Tap, site: Site, x: &Tensor) -> Result<()> {
    if tap.wants(site) { tap.see(site, x) } else { Ok(()) }
}
