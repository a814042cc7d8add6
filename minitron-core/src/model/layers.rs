//! Affine maps, norms and non-linearities.

use tch::Tensor;

use super::products::linear;
use crate::blueprint::{Activation, NormKind};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct Linear {
    pub weight_oi: Tensor,
    pub bias_o: Option<Tensor>,
}

impl Linear {
    /// x·Wᵀ + b over the last side.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight_oi, self.bias_o.as_ref())
    }

    /// The gradient on x [N, I] of one on x·Wᵀ + b [N, O]. Those of W and b are added to what they have in place, so that of
    /// a large W no second copy exists, which is what autograd makes in every call.
    pub fn back(&self, x_ni: &Tensor, gradient_no: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        if let Some(mut gradient_oi) = gradient_of(&self.weight_oi)? {
            let _ = gradient_oi.f_addmm_(&gradient_no.f_tr()?, x_ni)?;
        }
        if let Some(mut gradient_o) = self.bias_o.as_ref().map(gradient_of).transpose()?.flatten() {
            let _ = gradient_o.f_add_(&gradient_no.f_sum_dim_intlist(
                [0i64].as_slice(),
                false,
                gradient_no.f_kind()?,
            )?)?;
        }
        Ok(gradient_no.f_matmul(&self.weight_oi)?)
    }
}

/// The gradient that a weight has, zeros where it has none yet; none for a weight that takes none.
fn gradient_of(weight: &Tensor) -> Result<Option<Tensor>> {
    if !weight.requires_grad() {
        return Ok(None);
    }
    if !weight.f_grad()?.defined() {
        tch::with_grad(|| weight.f_narrow(0, 0, 0)?.f_sum(weight.f_kind()?)?.f_backward())?;
    }
    Ok(Some(weight.f_grad()?))
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
        Activation::Unknown => return Err(Error::Internal("an unknown activation function is computed".into())),
    })
}
