//! One layer: attention and MLP around the residual stream.

use tch::Tensor;

use super::LoadOptions;
use super::attention::Attention;
use super::cache::LayerCache;
use super::layers::{Linear, Norm, activate};
use super::layout::Layout;
use super::tap::{Site, Tap};
use super::weights::Weights;
use crate::blueprint::{Activation, Blueprint, NormPlace, Role};
use crate::checkpoint::TensorSource;
use crate::error::Result;

/// One layer, which can be loaded and run on its own.
///
/// ```text
/// pre-norm    m = x + attention(norm(x))            y = m + mlp(norm(m))
/// post-norm   m = norm(x + attention(x))            y = norm(m + mlp(m))
/// ```
/// Both are `m = settle_attention(attention_sum(x))`, `y = settle_mlp(mlp_sum(m))`.
#[derive(Debug)]
pub struct Block {
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
    /// Reads the weights of one layer.
    pub fn open(
        source: &dyn TensorSource,
        blueprint: &Blueprint,
        layer_idx: usize,
        options: LoadOptions,
    ) -> Result<Self> {
        Self::load(&mut Weights::new(source, blueprint, options), layer_idx)
    }

    pub(super) fn load(weights: &mut Weights, layer_idx: usize) -> Result<Self> {
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
        layout: &Layout,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let middle_bte = self.settle_attention(self.attention_sum(x_bte, layout, tap, cache)?)?;
        self.settle_mlp(self.mlp_sum(&middle_bte, tap)?)
    }

    /// The same, with the residual stream before and after it shown.
    pub fn shown(
        &self,
        x_bte: &Tensor,
        layout: &Layout,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        show(tap, Site::BlockInput(self.layer_idx), x_bte)?;
        let output_bte = self.forward(x_bte, layout, tap, cache)?;
        show(tap, Site::BlockOutput(self.layer_idx), &output_bte)?;
        Ok(output_bte)
    }

    /// What attention reads of the residual stream.
    pub fn attention_input(&self, x_bte: &Tensor) -> Result<Tensor> {
        self.before(&self.attention_norm, x_bte)
    }

    /// What the MLP reads of the residual stream between the two parts.
    pub fn mlp_input(&self, middle_bte: &Tensor) -> Result<Tensor> {
        self.before(&self.mlp_norm, middle_bte)
    }

    /// The residual stream with attention's output added.
    pub fn attention_sum(
        &self,
        x_bte: &Tensor,
        layout: &Layout,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let input_bte = self.attention_input(x_bte)?;
        show(tap, Site::AttentionInput(self.layer_idx), &input_bte)?;
        Ok(x_bte.f_add(&self.attention.forward(&input_bte, layout, tap, cache)?)?)
    }

    /// What comes between that sum and the MLP's part of the layer.
    pub fn settle_attention(&self, sum_bte: Tensor) -> Result<Tensor> {
        self.after(&self.attention_norm, sum_bte)
    }

    /// The residual stream between the two parts with the MLP's output added.
    pub fn mlp_sum(&self, middle_bte: &Tensor, tap: &mut dyn Tap) -> Result<Tensor> {
        show(tap, Site::BlockMiddle(self.layer_idx), middle_bte)?;
        let input_bte = self.mlp_input(middle_bte)?;
        show(tap, Site::MlpInput(self.layer_idx), &input_bte)?;
        Ok(middle_bte.f_add(&self.mlp.forward(&input_bte, tap)?)?)
    }

    /// What comes between that sum and the next layer.
    pub fn settle_mlp(&self, sum_bte: Tensor) -> Result<Tensor> {
        self.after(&self.mlp_norm, sum_bte)
    }

    fn before(&self, norm: &Norm, x_bte: &Tensor) -> Result<Tensor> {
        match self.norm_place {
            NormPlace::Pre => norm.forward(x_bte),
            NormPlace::Post => Ok(x_bte.shallow_clone()),
        }
    }

    fn after(&self, norm: &Norm, sum_bte: Tensor) -> Result<Tensor> {
        match self.norm_place {
            NormPlace::Pre => Ok(sum_bte),
            NormPlace::Post => norm.forward(&sum_bte),
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
