//! Weights of a student under reconstruction, read by role and replaced.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::exact;
use super::view::ReconstructedView;
use crate::checkpoint::{TensorSource, kind_of};
use crate::error::{Error, Result};
use crate::prune::{PrunedView, side_indices};
use crate::spec::{At, HIDDEN, Param, ParamKind, Role, split_dim};

impl StudentEditor<'_> {
    /// A weight of the student, as a layer multiplies with it, [out | in], in f64 on the CPU.
    ///
    /// # Errors
    /// `Internal` where the family has none: ask
    /// [`ModelSpec::find`](crate::spec::ModelSpec::find) first.
    pub fn read(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        laid_out(&self.student()?, self.param(at, role, kind)?)
    }

    /// The same as it was pruned, before any reconstruction replaced it.
    ///
    /// # Errors
    /// As [`StudentEditor::read`].
    pub fn read_pruned(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let pruned = PrunedView::new(self.teacher(), self.pruned_spec(), self.plan())?;
        laid_out(&pruned, self.param(at, role, kind)?)
    }

    /// The same of the student with all heads and neurons: only its channels and layers are pruned.
    pub fn read_all_heads(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        laid_out(&self.wide_view()?, self.param(at, role, kind)?)
    }

    /// The same of the teacher's weight with all channels, as pruned: its heads, neurons and layers
    /// are the student's.
    pub fn read_all_channels(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let mut plan = self.plan().clone();
        plan.kept.remove(HIDDEN);
        laid_out(
            &PrunedView::new(self.teacher(), self.pruned_spec(), &plan)?,
            self.param(at, role, kind)?,
        )
    }

    /// The teacher's whole weight, in the layer behind a layer of the student.
    pub fn read_teacher(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let source = at
            .layer()
            .map_or(at, |layer| at.in_layer(self.source_layer(layer)));
        let Some(param) = self.teacher_spec().find(source, role, kind) else {
            let message = format!("the teacher has no {role} ({kind:?}) in {source}");
            return Err(Error::Internal(message));
        };
        laid_out(self.teacher(), param)
    }

    /// The teacher's gain of a norm in f64, in the layer behind a layer of the student.
    ///
    /// # Errors
    /// As [`StudentEditor::read_teacher`].
    pub fn teachers_gain(&self, at: At, role: Role) -> Result<Tensor> {
        let gain_e = self.read_teacher(at, role, ParamKind::Weight)?;
        let source = at
            .layer()
            .map_or(at, |layer| at.in_layer(self.source_layer(layer)));
        let spec = self.teacher_spec();
        let norm = spec.find(source, role, ParamKind::Weight);
        let norm = norm.and_then(|param| spec.norm_of(param));
        let less_one = norm.is_some_and(|norm| norm.kind.stores_gain_less_one());
        Ok(gain_e.f_add_scalar(if less_one { 1.0 } else { 0.0 })?)
    }

    /// Puts a weight in the place of the student's, laid out as [`StudentEditor::read`] gives it.
    ///
    /// # Errors
    /// `Plugin` for another shape, or values that are not finite in the stored type.
    pub fn replace(&mut self, at: At, role: Role, kind: ParamKind, tensor: &Tensor) -> Result<()> {
        let param = self.param(at, role, kind)?;
        let (name, is_transposed) = (param.name(), param.transposed);
        let info = self.student()?.info(&name);
        let info = info.ok_or_else(|| not_in_student(&name))?;
        let tensor = if is_transposed {
            tensor.f_transpose(0, 1)?
        } else {
            tensor.shallow_clone()
        };
        let shape: Vec<usize> = tensor.size().iter().map(|&side| side as usize).collect();
        if shape != info.shape {
            return Err(self.broken(format!(
                "`{name}`: expected shape {:?}, got {shape:?}",
                info.shape
            )));
        }
        let kind = kind_of(info.dtype).ok_or_else(|| not_in_student(&name))?;
        let stored = tensor
            .f_detach()?
            .f_to_device(Device::Cpu)?
            .f_to_kind(kind)?
            .f_contiguous()?;
        if stored
            .f_isfinite()?
            .f_logical_not()?
            .f_sum(Kind::Int64)?
            .f_int64_value(&[])?
            > 0
        {
            return Err(self.broken(format!("`{name}`: values that are not finite as {kind:?}")));
        }
        let _ = self.factors.remove(&name);
        self.changes.insert(name, stored);
        Ok(())
    }

    /// Puts a norm's gain in the place of the student's, however it is stored.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn set_gain(&mut self, at: At, role: Role, gain_k: &Tensor) -> Result<()> {
        let param = self.param(at, role, ParamKind::Weight)?;
        let norm = self.spec().norm_of(param);
        let less_one = norm.is_some_and(|norm| norm.kind.stores_gain_less_one());
        let stored_k = gain_k.f_sub_scalar(if less_one { 1.0 } else { 0.0 })?;
        self.replace(at, role, ParamKind::Weight, &stored_k)
    }

    /// A norm's gain in f64, however it is stored.
    ///
    /// # Errors
    /// As [`StudentEditor::read`].
    pub fn gain(&self, at: At, role: Role) -> Result<Tensor> {
        let norm = self
            .spec()
            .norm_of(self.param(at, role, ParamKind::Weight)?);
        let less_one = norm.is_some_and(|norm| norm.kind.stores_gain_less_one());
        let stored_k = self.read(at, role, ParamKind::Weight)?;
        Ok(stored_k.f_add_scalar(if less_one { 1.0 } else { 0.0 })?)
    }

    /// Multiplies a norm's gain, however it is stored.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn scale_gain(&mut self, at: At, role: Role, factor: f64) -> Result<()> {
        let gain_k = self.gain(at, role)?.f_mul_scalar(factor)?;
        self.set_gain(at, role, &gain_k)
    }

    /// Positions of a norm's gain that the student keeps, in the teacher's numbering.
    ///
    /// # Errors
    /// `Internal` where the family has no such norm.
    pub fn kept_of_norm(&self, at: At, role: Role) -> Result<Vec<usize>> {
        let source = at
            .layer()
            .map_or(at, |layer| at.in_layer(self.source_layer(layer)));
        let spec = self.teacher_spec();
        let param = spec.find(source, role, ParamKind::Weight);
        let Some(side) = param.and_then(|param| param.sides.first()) else {
            let message = format!("the teacher has no {role} in {source}");
            return Err(Error::Internal(message));
        };
        Ok(side_indices(side, spec, self.plan()).unwrap_or_else(|| (0..spec.len(side)).collect()))
    }

    /// Replaced weights count where pruned heads and neurons are no part of them.
    pub(super) fn wide_view(&self) -> Result<ReconstructedView<'_>> {
        let mut plan = self.plan().clone();
        plan.kept.retain(|dim, _| split_dim(dim).1.is_none());
        let wide = PrunedView::new(self.teacher(), self.pruned_spec(), &plan)?;
        let mut changes = BTreeMap::new();
        for (name, tensor) in &self.changes {
            let shape: Vec<usize> = tensor.size().iter().map(|&side| side as usize).collect();
            if wide.info(name).is_some_and(|info| info.shape == shape) {
                changes.insert(name.as_str(), tensor);
            }
        }
        Ok(ReconstructedView::new(wide, changes, &self.factors))
    }

    pub(super) fn param(&self, at: At, role: Role, kind: ParamKind) -> Result<&Param> {
        self.spec().find(at, role, kind).ok_or_else(|| {
            let family = &self.spec().architecture;
            Error::Internal(format!("`{family}` has no {role} ({kind:?}) in {at}"))
        })
    }
}

fn not_in_student(name: &str) -> Error {
    Error::Internal(format!("no tensor `{name}` in the student"))
}

/// [out | in] in f64.
fn laid_out(source: &dyn TensorSource, param: &Param) -> Result<Tensor> {
    let stored = exact(&source.read(&param.name())?)?;
    if param.transposed {
        Ok(stored.f_transpose(0, 1)?.f_contiguous()?)
    } else {
        Ok(stored)
    }
}
