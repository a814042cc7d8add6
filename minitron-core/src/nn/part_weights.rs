//! The weights of a part of a model, found by role.

use tch::Tensor;

use super::layers::{Linear, NormLayer};
use crate::error::{Error, Result};
use crate::parts::{At, Norm, ParamKind, Role, dim_of_layer};

/// What knows a model's tensors and reads them.
pub trait ReadWeights {
    /// The family, for messages.
    fn family(&self) -> &str;

    /// The size of a dim, by its full name.
    fn size(&self, dim: &str) -> Option<usize>;

    /// A tensor, where the family declares it.
    ///
    /// # Errors
    /// As reading does.
    fn optional(&mut self, at: At, role: Role, kind: ParamKind) -> Result<Option<Tensor>>;
}

/// The weights of one part of the model, by role.
pub struct PartWeights<'w> {
    weights: &'w mut dyn ReadWeights,
    at: At,
}

impl<'w> PartWeights<'w> {
    /// Of one part.
    pub fn new(weights: &'w mut dyn ReadWeights, at: At) -> Self {
        PartWeights { weights, at }
    }

    /// The size of a dim of this layer.
    ///
    /// # Errors
    /// `Internal` where the layer has none of this kind.
    pub fn size(&self, kind: &str) -> Result<usize> {
        self.size_opt(kind).ok_or_else(|| {
            Error::Internal(format!("`{}` has no {kind} in {}", self.family(), self.at))
        })
    }

    /// The same, where the layer has one.
    pub fn size_opt(&self, kind: &str) -> Option<usize> {
        let name = dim_of_layer(kind, self.at.layer()?);
        self.weights.size(&name)
    }

    /// Those of one of the part's equal parts, an expert.
    pub fn unit(&mut self, unit: usize) -> PartWeights<'_> {
        PartWeights {
            at: self.at.unit(unit),
            weights: &mut *self.weights,
        }
    }

    /// A matrix [out | in] with its bias, where it has one.
    ///
    /// # Errors
    /// As reading does; `Internal` where the family declares no such tensor.
    pub fn linear(&mut self, role: Role) -> Result<Linear> {
        let weight_oi = self.required(role, ParamKind::Weight)?;
        Ok(Linear {
            weight_oi,
            bias_o: self.tensor_opt(role, ParamKind::Bias)?,
        })
    }

    /// A norm's gain with its bias, where it has one.
    ///
    /// # Errors
    /// As reading does; `Internal` where the family declares no such tensor.
    pub fn norm(&mut self, role: Role, of: Norm) -> Result<NormLayer> {
        let gain_e = self.required(role, ParamKind::Weight)?;
        Ok(NormLayer {
            of,
            gain_e,
            bias_e: self.tensor_opt(role, ParamKind::Bias)?,
        })
    }

    /// Any tensor.
    ///
    /// # Errors
    /// As reading does; `Internal` where the family declares no such tensor.
    pub fn tensor(&mut self, role: Role, kind: ParamKind) -> Result<Tensor> {
        self.required(role, kind)
    }

    /// The same, where the family declares it.
    ///
    /// # Errors
    /// As reading does.
    pub fn tensor_opt(&mut self, role: Role, kind: ParamKind) -> Result<Option<Tensor>> {
        self.weights.optional(self.at, role, kind)
    }

    fn family(&self) -> &str {
        self.weights.family()
    }

    fn required(&mut self, role: Role, kind: ParamKind) -> Result<Tensor> {
        let found = self.tensor_opt(role, kind)?;
        found.ok_or_else(|| {
            Error::Internal(format!(
                "`{}` declares no {role} ({kind:?}) in {}",
                self.family(),
                self.at
            ))
        })
    }
}
