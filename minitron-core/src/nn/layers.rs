//! Affine maps, norms and non-linearities.

use tch::{Kind, Tensor};

use super::products::linear;
use crate::error::{Error, Result};
use crate::parts::{Activation, Norm, NormKind};

/// x·Wᵀ + b.
#[derive(Debug)]
pub struct Linear {
    /// W [out | in].
    pub weight_oi: Tensor,
    /// b.
    pub bias_o: Option<Tensor>,
}

impl Linear {
    /// x·Wᵀ + b over the last side.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight_oi, self.bias_o.as_ref())
    }

    /// The same in f32 where x or W are narrower.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn widened(&self, x: &Tensor) -> Result<Tensor> {
        if x.f_kind()?.elt_size_in_bytes() >= 4 {
            return self.forward(x);
        }
        let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
        let bias_o = self.bias_o.as_ref().map(wide).transpose()?;
        linear(&wide(x)?, &wide(&self.weight_oi)?, bias_o.as_ref())
    }

    /// The gradient on x [N, I] of one on x·Wᵀ + b [N, O]. Those of W and b are added to what they
    /// have in place, so that of a large W no second copy exists, which is what autograd makes in
    /// every call.
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
        tch::with_grad(|| {
            weight
                .f_narrow(0, 0, 0)?
                .f_sum(weight.f_kind()?)?
                .f_backward()
        })?;
    }
    Ok(Some(weight.f_grad()?))
}

/// A norm with its weights.
#[derive(Debug)]
pub struct NormLayer {
    pub(super) of: Norm,
    pub(super) gain_e: Tensor,
    pub(super) bias_e: Option<Tensor>,
}

impl NormLayer {
    /// Over the last side.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (shape, eps) = (self.gain_e.size(), self.of.eps);
        let normed = match self.of.kind {
            NormKind::Rms => x.f_rms_norm(&shape, Some(&self.gain_e), eps)?,
            // 1 + w would lose w's last digits in half precision.
            NormKind::Rms1p => {
                let kind = x.f_kind()?;
                let wide = if kind.elt_size_in_bytes() < 4 {
                    Kind::Float
                } else {
                    kind
                };
                let gain_e = self.gain_e.f_to_kind(wide)?.f_add_scalar(1.0)?;
                x.f_to_kind(wide)?
                    .f_rms_norm(&shape, Some(&gain_e), eps)?
                    .f_to_kind(kind)?
            }
            NormKind::Layer => {
                return Ok(x.f_layer_norm(
                    &shape,
                    Some(&self.gain_e),
                    self.bias_e.as_ref(),
                    eps,
                    true,
                )?);
            }
            NormKind::Layer1p => {
                let gain_e = self.gain_e.f_add_scalar(1.0)?;
                let bias_e = self.bias_e.as_ref();
                return Ok(x.f_layer_norm(&shape, Some(&gain_e), bias_e, eps, true)?);
            }
        };
        // No family has one; a layer norm whose stream was turned does.
        Ok(match &self.bias_e {
            Some(bias_e) => normed.f_add(bias_e)?,
            None => normed,
        })
    }
}

/// An MLP's non-linearity.
///
/// # Errors
/// `Internal` for one that is not known: it is refused before.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Silu => x.f_silu()?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::GeluTanh => x.f_gelu("tanh")?,
        Activation::Relu => x.f_relu()?,
        Activation::Relu2 => x.f_relu()?.f_square()?,
        Activation::Unknown => {
            return Err(Error::Internal(
                "an unknown activation function is computed".into(),
            ));
        }
    })
}
