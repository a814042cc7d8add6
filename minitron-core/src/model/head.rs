//! From the last hidden state to logits. N rows, E embed, V vocab.

use tch::Tensor;

use super::layers::{Linear, Norm, activate};
use super::weights::Weights;
use crate::blueprint::{Activation, Output, Role, Slot};
use crate::error::Result;

/// A projection on the vocabulary, which BERT's kind puts a layer of its own before.
#[derive(Debug)]
pub(crate) struct Head {
    transform: Option<(Linear, Norm)>,
    projection: Linear,
    activation: Activation,
}

impl Head {
    /// None for a model whose output is its hidden state.
    pub(super) fn load(weights: &mut Weights, table_ve: Option<&Tensor>) -> Result<Option<Self>> {
        let blueprint = weights.blueprint;
        let transform = match weights.linear_opt(Role::HeadTransform, None)? {
            Some(linear) => Some((linear, weights.norm(Role::HeadNorm, None)?)),
            None => None,
        };
        let projection = match (blueprint.options.output, table_ve) {
            (Output::Hidden, _) => return Ok(None),
            (Output::Logits, Some(table_ve)) if blueprint.options.tied => {
                Linear { weight_oi: table_ve.shallow_clone(), bias_o: weights.optional(Role::Head, Slot::Bias, None)? }
            }
            (Output::Logits, _) => weights.linear(Role::Head, None)?,
        };
        Ok(Some(Head { transform, projection, activation: blueprint.options.activation }))
    }

    /// What the projection reads, [.., E], of hidden states [.., E].
    pub fn inputs(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.transform {
            Some((dense, norm)) => norm.forward(&activate(&dense.forward(hidden)?, self.activation)?),
            None => Ok(hidden.shallow_clone()),
        }
    }

    /// Logits [.., V] of what the projection reads.
    pub fn project(&self, inputs: &Tensor) -> Result<Tensor> {
        self.projection.forward(inputs)
    }

    /// The gradient on the projection's inputs [N, E] of one on its logits [N, V]; what reaches its weights is added to
    /// theirs.
    pub fn back(&self, inputs_ne: &Tensor, gradient_nv: &Tensor) -> Result<Tensor> {
        self.projection.back(inputs_ne, gradient_nv)
    }
}
