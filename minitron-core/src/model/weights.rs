//! Finds weights by role, reads them once and remembers them as parameters.

use tch::{Device, Kind, Tensor};

use super::LoadOptions;
use super::layers::{Linear, NormLayer};
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};
use crate::spec::{At, ModelSpec, Norm, Param, ParamKind, Role, dim_of_layer};

/// One weight of a loaded model.
#[derive(Debug)]
pub struct Parameter {
    /// Name in the file.
    pub name: String,
    /// Shares memory with the model.
    pub tensor: Tensor,
    /// Whether weight decay applies.
    pub decays: bool,
    transposed: bool,
    stored_kind: Kind,
}

impl Parameter {
    /// A weight that is learned beside the model's own.
    pub fn learned(name: String, tensor: &Tensor, device: Device, kind: Kind) -> Result<Self> {
        let stored_kind = tensor.f_kind()?;
        let tensor = tensor.f_to_device(device)?.f_to_kind(kind)?.f_detach_copy()?.f_set_requires_grad(true)?;
        Ok(Parameter { name, tensor, decays: true, transposed: false, stored_kind })
    }

    /// The gradient in the source's layout, in the type computed in; zero where nothing depends on this weight.
    pub fn gradient(&self) -> Result<Tensor> {
        let gradient = self.tensor.f_grad()?;
        let gradient = if gradient.defined() { gradient } else { self.tensor.f_detach()?.f_zeros_like()? };
        let gradient = if self.transposed { gradient.f_transpose(0, 1)? } else { gradient };
        Ok(gradient.f_contiguous()?)
    }

    /// In the source's layout and type, detached; from a more exact copy where there is one.
    pub fn stored(&self, master: Option<&Tensor>) -> Result<Tensor> {
        let tensor = master.unwrap_or(&self.tensor).f_detach()?.f_to_kind(self.stored_kind)?;
        let tensor = if self.transposed { tensor.f_transpose(0, 1)? } else { tensor };
        Ok(tensor.f_contiguous()?)
    }
}

pub(super) struct Weights<'a> {
    source: &'a dyn TensorSource,
    pub(super) spec: &'a ModelSpec,
    pub(super) options: LoadOptions,
    parameters: Vec<Parameter>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(source: &'a dyn TensorSource, spec: &'a ModelSpec, options: LoadOptions) -> Self {
        Weights { source, spec, options, parameters: Vec::new() }
    }

    fn read(&mut self, param: &Param) -> Result<Tensor> {
        let name = param.name();
        let stored = self.source.read(&name)?;
        let stored_kind = stored.f_kind()?;
        let laid_out = if param.transposed { stored.f_transpose(0, 1)? } else { stored };
        let tensor = laid_out.f_to_device(self.options.device)?.f_to_kind(self.options.kind)?.f_contiguous()?;
        // Training changes tensors in place: never the source's own memory.
        let tensor = if self.options.trainable { tensor.f_detach_copy()?.f_set_requires_grad(true)? } else { tensor };
        self.parameters.push(Parameter {
            name,
            tensor: tensor.shallow_clone(),
            decays: param.decays(),
            transposed: param.transposed,
            stored_kind,
        });
        Ok(tensor)
    }

    /// The weights of one part of the model.
    pub(super) fn part(&mut self, at: At) -> PartWeights<'_, 'a> {
        PartWeights { weights: self, at }
    }

    pub(super) fn optional(&mut self, at: At, role: Role, kind: ParamKind) -> Result<Option<Tensor>> {
        let spec = self.spec;
        spec.find(at, role, kind).map(|param| self.read(param)).transpose()
    }

    pub(super) fn required(&mut self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let family = &self.spec.architecture;
        let missing = || Error::Internal(format!("`{family}` declares no {role} ({kind:?}) in {at}"));
        self.optional(at, role, kind)?.ok_or_else(missing)
    }

    /// Reads what the forward pass does not use but the folder holds, so that a trained model is written whole.
    pub(super) fn finish(mut self) -> Result<Vec<Parameter>> {
        if self.options.trainable {
            let spec = self.spec;
            for param in spec.params.iter().filter(|param| param.role == Role::CARRIED) {
                let _ = self.read(param)?;
            }
        }
        Ok(self.parameters)
    }
}

/// The weights of one part of the model, by role.
pub struct PartWeights<'w, 'a> {
    weights: &'w mut Weights<'a>,
    at: At,
}

impl PartWeights<'_, '_> {
    /// The size of a dim of this layer.
    ///
    /// # Errors
    /// `Internal` where the layer has none of this kind.
    pub fn size(&self, kind: &str) -> Result<usize> {
        let missing = || Error::Internal(format!("`{}` has no {kind} in {}", self.family(), self.at));
        self.size_opt(kind).ok_or_else(missing)
    }

    /// The same, where the layer has one.
    pub fn size_opt(&self, kind: &str) -> Option<usize> {
        let name = dim_of_layer(kind, self.at.layer()?);
        self.weights.spec.dims.get(&name).map(|dim| dim.size)
    }

    /// A matrix [out | in] with its bias, where it has one.
    ///
    /// # Errors
    /// As reading does; `Internal` where the family declares no such tensor.
    pub fn linear(&mut self, role: Role) -> Result<Linear> {
        let weight_oi = self.weights.required(self.at, role, ParamKind::Weight)?;
        Ok(Linear { weight_oi, bias_o: self.weights.optional(self.at, role, ParamKind::Bias)? })
    }

    /// A norm's gain with its bias, where it has one.
    ///
    /// # Errors
    /// As reading does; `Internal` where the family declares no such tensor.
    pub fn norm(&mut self, role: Role, of: Norm) -> Result<NormLayer> {
        let gain_e = self.weights.required(self.at, role, ParamKind::Weight)?;
        Ok(NormLayer { of, gain_e, bias_e: self.weights.optional(self.at, role, ParamKind::Bias)? })
    }

    /// Any tensor.
    ///
    /// # Errors
    /// As reading does; `Internal` where the family declares no such tensor.
    pub fn tensor(&mut self, role: Role, kind: ParamKind) -> Result<Tensor> {
        self.weights.required(self.at, role, kind)
    }

    fn family(&self) -> &str {
        &self.weights.spec.architecture
    }
}
