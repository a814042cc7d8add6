//! Affine maps, norms and non-linearities.

use tch::Tensor;

use crate::blueprint::{Activation, NormKind};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Linear {
    pub weight_oi: Tensor,
    pub bias_o: Option<Tensor>,
}

impl Linear {
    /// x·Wᵀ + b over the last side.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight_oi, self.bias_o.as_ref())?)
    }
}

#[derive(Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    pub gain_e: Tensor,
    pub bias_e: Option<Tensor>,
}

impl Norm {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = self.gain_e.size();
        Ok(match self.kind {
            NormKind::Rms => x.f_rms_norm(&shape, Some(&self.gain_e), self.eps)?,
            NormKind::Layer => x.f_layer_norm(&shape, Some(&self.gain_e), self.bias_e.as_ref(), self.eps, true)?,
            NormKind::Layer1p => {
                let gain_e = self.gain_e.f_add_scalar(1.0)?;
                x.f_layer_norm(&shape, Some(&gain_e), self.bias_e.as_ref(), self.eps, true)?
            }
        })
    }
}

pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Silu => x.f_silu()?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::GeluTanh => x.f_gelu("tanh")?,
        Activation::Relu => x.f_relu()?,
        Activation::Relu2 => x.f_relu()?.f_square()?,
    })
}
