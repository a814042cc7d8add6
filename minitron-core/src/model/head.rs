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
    /// time: `loss` makes a chunk's part of it from the logits [len, V] and where the chunk begins.
    /// What reaches the projection's weights is added to theirs.
    ///
    /// # Errors
    /// Those of `loss`.
    pub fn gradient(
        &self,
        inputs_ne: &Tensor,
        vocab: usize,
        mut loss: impl FnMut(&Tensor, i64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let inputs_ne = inputs_ne.f_detach()?;
        let gradient_ne = inputs_ne.f_zeros_like()?;
        for (start, len) in row_chunks(inputs_ne.size2()?.0, vocab) {
            let rows_ne = inputs_ne.f_narrow(0, start, len)?;
            let logits_nv = tch::no_grad(|| self.project(&rows_ne))?
                .f_detach()?
                .f_set_requires_grad(true)?;
            loss(&logits_nv, start)?.f_backward()?;
            let gradient_nv = logits_nv.f_grad()?;
            if gradient_nv.defined() {
                gradient_ne.f_narrow(0, start, len)?.f_copy_(&self.back(
                    &rows_ne,
                    &logits_nv,
                    &gradient_nv,
                )?)?;
            }
        }
        Ok(gradient_ne)
    }

    /// The gradient on the projection's inputs [N, E] of one on its logits [N, V], which are given
    /// too; what reaches its weights is added to theirs.
    fn back(&self, inputs_ne: &Tensor, logits_nv: &Tensor, gradient_nv: &Tensor) -> Result<Tensor> {
        let mut gradient_nv = gradient_nv.shallow_clone();
        if let Some(cap) = self.softcap {
            // d/dz c·tanh(z/c) = 1 - (logit/c)².
            let square_nv = logits_nv.f_detach()?.f_div_scalar(cap)?.f_square()?;
            gradient_nv = gradient_nv.f_mul(&square_nv.f_neg()?.f_add_scalar(1.0)?)?;
        }
        if self.scale != 1.0 {
            gradient_nv = gradient_nv.f_mul_scalar(self.scale)?;
        }
        self.projection.back(inputs_ne, &gradient_nv)
    }
}
