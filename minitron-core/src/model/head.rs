//! From the last hidden state to logits. N rows, E embed, V vocab.

use tch::Tensor;

use super::weights::Weights;
use crate::error::Result;
use crate::nn::row_chunks;
use crate::nn::{Linear, NormLayer, activate};
use crate::spec::{Activation, At, ParamKind, Role};

/// A projection on the vocabulary, which BERT's kind puts a layer of its own before.
#[derive(Debug)]
pub struct LmHead {
    transform: Option<(Linear, Activation, NormLayer)>,
    projection: Linear,
    scale: f64,
    softcap: Option<f64>,
}

impl LmHead {
    /// None for a model whose output is its hidden state.
    pub(super) fn load(weights: &mut Weights, table_ve: Option<&Tensor>) -> Result<Option<Self>> {
        let spec = weights.spec;
        let Some(head) = &spec.options.head else {
            return Ok(None);
        };
        let transform = match head.transform {
            Some((activation, norm)) => {
                let dense = weights.part(At::Model).linear(Role::HEAD_TRANSFORM)?;
                Some((
                    dense,
                    activation,
                    weights.part(At::Model).norm(Role::HEAD_NORM, norm)?,
                ))
            }
            None => None,
        };
        let projection = match table_ve {
            Some(table_ve) if spec.options.tied => Linear {
                weight_oi: table_ve.shallow_clone(),
                bias_o: weights
                    .part(At::Model)
                    .tensor_opt(Role::HEAD, ParamKind::Bias)?,
            },
            _ => weights.part(At::Model).linear(Role::HEAD)?,
        };
        Ok(Some(LmHead {
            transform,
            projection,
            scale: head.scale,
            softcap: head.softcap,
        }))
    }

    /// What the projection reads, [.., E], of hidden states [.., E].
    pub fn inputs(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.transform {
            Some((dense, activation, norm)) => {
                norm.forward(&activate(&dense.forward(hidden)?, *activation)?)
            }
            None => Ok(hidden.shallow_clone()),
        }
    }

    /// Logits [.., V] of what the projection reads: cap(s · (x·Wᵀ + b)).
    pub fn project(&self, inputs: &Tensor) -> Result<Tensor> {
        let mut logits = self.projection.forward(inputs)?;
        if self.scale != 1.0 {
            logits = logits.f_mul_scalar(self.scale)?;
        }
        match self.softcap {
            Some(cap) => Ok(logits.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?),
            None => Ok(logits),
        }
    }

    /// The gradient on the projection's inputs [N, E] of a sum over rows, a chunk of rows at a
    /// time: `loss` makes the gradient on a chunk's logits [len, V] from them and from where the
    /// chunk begins; it may stand in their place, and there is none where nothing depends on them.
    /// What reaches the projection's weights is added to theirs.
    ///
    /// # Errors
    /// Those of `loss`.
    pub fn gradient(
        &self,
        inputs_ne: &Tensor,
        vocab: usize,
        mut loss: impl FnMut(Tensor, i64) -> Result<Option<Tensor>>,
    ) -> Result<Tensor> {
        let inputs_ne = inputs_ne.f_detach()?;
        let gradient_ne = inputs_ne.f_zeros_like()?;
        for (start, len) in row_chunks(inputs_ne.size2()?.0, vocab, inputs_ne.device()) {
            let rows_ne = inputs_ne.f_narrow(0, start, len)?;
            let logits_nv = tch::no_grad(|| self.project(&rows_ne))?.f_detach()?;
            let slope_nv = self.slope(&logits_nv)?;
            if let Some(gradient_nv) = loss(logits_nv, start)? {
                gradient_ne.f_narrow(0, start, len)?.f_copy_(&self.back(
                    &rows_ne,
                    gradient_nv,
                    slope_nv,
                )?)?;
            }
        }
        Ok(gradient_ne)
    }

    /// The cap's derivative at these logits: d/dz c·tanh(z/c) = 1 - (logit/c)².
    fn slope(&self, logits_nv: &Tensor) -> Result<Option<Tensor>> {
        let Some(cap) = self.softcap else {
            return Ok(None);
        };
        let square_nv = logits_nv.f_div_scalar(cap)?.f_square()?;
        Ok(Some(square_nv.f_neg()?.f_add_scalar(1.0)?))
    }

    /// The gradient on the projection's inputs [N, E] of one on its logits [N, V]; what reaches its
    /// weights is added to theirs.
    fn back(
        &self,
        inputs_ne: &Tensor,
        mut gradient_nv: Tensor,
        slope_nv: Option<Tensor>,
    ) -> Result<Tensor> {
        if let Some(slope_nv) = slope_nv {
            gradient_nv = gradient_nv.f_mul(&slope_nv)?;
        }
        if self.scale != 1.0 {
            gradient_nv = gradient_nv.f_mul_scalar(self.scale)?;
        }
        self.projection.back(inputs_ne, &gradient_nv)
    }
}

/// The gradient on logits [N, V] of a scalar that is made of them, by automatic differentiation;
/// none where it does not depend on them.
///
/// # Errors
/// Those of `scalar`.
pub fn gradient_on_logits(
    logits_nv: &Tensor,
    scalar: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    let logits_nv = logits_nv.f_detach()?.f_set_requires_grad(true)?;
    scalar(&logits_nv)?.f_backward()?;
    let gradient_nv = logits_nv.f_grad()?;
    Ok(gradient_nv.defined().then_some(gradient_nv))
}
