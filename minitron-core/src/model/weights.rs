//! Finds weights by role, reads them once and remembers them as parameters.

use tch::{Device, Kind, Tensor};

use super::LoadOptions;
use super::layers::{Linear, Norm};
use crate::blueprint::{Blueprint, Role, Slot, TensorSpec};
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};

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
    pub(crate) fn learned(name: String, tensor: &Tensor, device: Device, kind: Kind) -> Result<Self> {
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
    pub(super) blueprint: &'a Blueprint,
    pub(super) options: LoadOptions,
    parameters: Vec<Parameter>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(source: &'a dyn TensorSource, blueprint: &'a Blueprint, options: LoadOptions) -> Self {
        Weights { source, blueprint, options, parameters: Vec::new() }
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Tensor> {
        let name = spec.name();
        let stored = self.source.read(&name)?;
        let stored_kind = stored.f_kind()?;
        let laid_out = if spec.transposed { stored.f_transpose(0, 1)? } else { stored };
        let tensor = laid_out.f_to_device(self.options.device)?.f_to_kind(self.options.kind)?.f_contiguous()?;
        // Training changes tensors in place: never the source's own memory.
        let tensor = if self.options.trainable { tensor.f_detach_copy()?.f_set_requires_grad(true)? } else { tensor };
        self.parameters.push(Parameter {
            name,
            tensor: tensor.shallow_clone(),
            decays: spec.decays(),
            transposed: spec.transposed,
            stored_kind,
        });
        Ok(tensor)
    }

    pub(super) fn optional(&mut self, role: Role, slot: Slot, layer: Option<usize>) -> Result<Option<Tensor>> {
        let blueprint = self.blueprint;
        blueprint.find(role, slot, layer).map(|spec| self.read(spec)).transpose()
    }

    pub(super) fn required(&mut self, role: Role, slot: Slot, layer: Option<usize>) -> Result<Tensor> {
        self.optional(role, slot, layer)?.ok_or_else(|| {
            Error::Internal(format!(
                "`{}` declares no {role:?} {slot:?} in layer {layer:?}",
                self.blueprint.architecture
            ))
        })
    }

    pub(super) fn linear(&mut self, role: Role, layer: Option<usize>) -> Result<Linear> {
        let weight_oi = self.required(role, Slot::Weight, layer)?;
        Ok(Linear { weight_oi, bias_o: self.optional(role, Slot::Bias, layer)? })
    }

    pub(super) fn linear_opt(&mut self, role: Role, layer: Option<usize>) -> Result<Option<Linear>> {
        if self.blueprint.find(role, Slot::Weight, layer).is_none() {
            return Ok(None);
        }
        self.linear(role, layer).map(Some)
    }

    pub(super) fn norm(&mut self, role: Role, layer: Option<usize>) -> Result<Norm> {
        let gain_e = self.required(role, Slot::Weight, layer)?;
        let bias_e = self.optional(role, Slot::Bias, layer)?;
        let options = &self.blueprint.options;
        Ok(Norm { kind: options.norm, eps: options.norm_eps, gain_e, bias_e })
    }

    pub(super) fn norm_opt(&mut self, role: Role, layer: Option<usize>) -> Result<Option<Norm>> {
        if self.blueprint.find(role, Slot::Weight, layer).is_none() {
            return Ok(None);
        }
        self.norm(role, layer).map(Some)
    }

    /// Reads what the forward pass does not use but the folder holds, so that a trained model is written whole.
    pub(super) fn finish(mut self) -> Result<Vec<Parameter>> {
        if self.options.trainable {
            let blueprint = self.blueprint;
            for spec in blueprint.tensors.iter().filter(|spec| spec.role == Role::Carried) {
                let _ = self.read(spec)?;
            }
        }
        Ok(self.parameters)
    }
}
