//! Finds weights by role, reads them once and remembers them as parameters.

use tch::{Device, Kind, Tensor};

use super::LoadOptions;
use crate::checkpoint::TensorSource;
use crate::error::Result;
use crate::nn::{PartWeights, ReadWeights};
use crate::spec::{At, ModelSpec, Param, ParamKind, Role};

/// One weight of a loaded model.
#[derive(Debug)]
pub struct Parameter {
    /// Name in the file.
    pub name: String,
    /// Shares memory with the model.
    pub tensor: Tensor,
    /// Whether weight decay applies.
    pub decays: bool,
    /// The layer that it belongs to.
    pub layer: Option<usize>,
    transposed: bool,
    stored_kind: Kind,
}

impl Parameter {
    /// A weight that is learned beside the model's own.
    pub fn learned(name: String, tensor: &Tensor, device: Device, kind: Kind) -> Result<Self> {
        let stored_kind = tensor.f_kind()?;
        let tensor = tensor
            .f_to_device(device)?
            .f_to_kind(kind)?
            .f_detach_copy()?
            .f_set_requires_grad(true)?;
        Ok(Parameter {
            name,
            tensor,
            decays: true,
            layer: None,
            transposed: false,
            stored_kind,
        })
    }

    /// The gradient in the source's layout, in the type computed in; zero where nothing depends on
    /// this weight.
    pub fn gradient(&self) -> Result<Tensor> {
        let gradient = self.tensor.f_grad()?;
        let gradient = if gradient.defined() {
            gradient
        } else {
            self.tensor.f_detach()?.f_zeros_like()?
        };
        let gradient = if self.transposed {
            gradient.f_transpose(-2, -1)?
        } else {
            gradient
        };
        Ok(gradient.f_contiguous()?)
    }

    /// In the source's layout and type, detached; from a more exact copy where there is one.
    pub fn stored(&self, master: Option<&Tensor>) -> Result<Tensor> {
        let tensor = master
            .unwrap_or(&self.tensor)
            .f_detach()?
            .f_to_kind(self.stored_kind)?;
        let tensor = if self.transposed {
            tensor.f_transpose(-2, -1)?
        } else {
            tensor
        };
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
    pub(super) fn new(
        source: &'a dyn TensorSource,
        spec: &'a ModelSpec,
        options: LoadOptions,
    ) -> Self {
        Weights {
            source,
            spec,
            options,
            parameters: Vec::new(),
        }
    }

    fn read(&mut self, param: &Param) -> Result<Tensor> {
        let name = param.name();
        let stored = self.source.read(&name)?;
        let stored_kind = stored.f_kind()?;
        let laid_out = if param.transposed {
            stored.f_transpose(-2, -1)?
        } else {
            stored
        };
        let tensor = laid_out
            .f_to_device(self.options.device)?
            .f_to_kind(self.options.kind)?
            .f_contiguous()?;
        // Training changes tensors in place: never the source's own memory.
        let tensor = if self.options.trainable {
            tensor.f_detach_copy()?.f_set_requires_grad(true)?
        } else {
            tensor
        };
        self.parameters.push(Parameter {
            name,
            tensor: tensor.shallow_clone(),
            decays: param.decays(),
            layer: param.layer(),
            transposed: param.transposed,
            stored_kind,
        });
        Ok(tensor)
    }

    /// Those read so far.
    pub(super) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The weights of one part of the model.
    pub(super) fn part(&mut self, at: At) -> PartWeights<'_> {
        PartWeights::new(self, at)
    }

    /// Reads what the forward pass does not use but the folder holds, so that a trained model is
    /// written whole.
    pub(super) fn finish(mut self) -> Result<Vec<Parameter>> {
        if self.options.trainable {
            let spec = self.spec;
            for param in spec
                .params
                .iter()
                .filter(|param| param.role == Role::CARRIED)
            {
                let _ = self.read(param)?;
            }
        }
        Ok(self.parameters)
    }
}

impl ReadWeights for Weights<'_> {
    fn family(&self) -> &str {
        &self.spec.architecture
    }

    fn size(&self, dim: &str) -> Option<usize> {
        self.spec.dims.get(dim).map(|dim| dim.size)
    }

    fn optional(&mut self, at: At, role: Role, kind: ParamKind) -> Result<Option<Tensor>> {
        let spec = self.spec;
        spec.find(at, role, kind)
            .map(|param| self.read(param))
            .transpose()
    }
}
