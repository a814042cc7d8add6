//! Weights of a student under reconstruction, read by role and replaced.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::exact;
use super::view::ReconstructedView;
use crate::checkpoint::{TensorSource, kind_of};
use crate::error::{Error, Result};
use crate::prune::{PrunedView, side_indices};
use crate::spec::{At, EXPERTS, HIDDEN, Param, ParamKind, Role, dim_of_layer, split_dim};

impl StudentEditor<'_> {
    /// A weight of the student, as a layer multiplies with it, [out | in], in f64 on the CPU.
    ///
    /// # Errors
    /// `Internal` where the family has none: ask [`StudentEditor::has`] first.
    pub fn read(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let (param, row) = self.placed(at, role, kind)?;
        let rows = row.map(|row| row..row + 1);
        let is_row = rows.is_some();
        let tensor = laid_out_rows(&self.student()?, param, rows)?;
        Ok(if is_row {
            tensor.f_squeeze_dim(0)?
        } else {
            tensor
        })
    }

    /// Whether the student has such a weight; an expert has its row where those of all experts are
    /// one tensor.
    pub fn has(&self, at: At, role: Role, kind: ParamKind) -> bool {
        self.placed(at, role, kind).is_ok()
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

    /// The teacher's expert behind one of the student's, in a layer of the teacher.
    pub fn source_unit(&self, source_layer: usize, unit: usize) -> usize {
        let kept = self.kept(&dim_of_layer(EXPERTS, source_layer));
        kept.get(unit).copied().unwrap_or(unit)
    }

    /// The same place of the teacher: in the layer behind a layer of the student, in the expert
    /// behind one of its experts.
    fn in_teacher(&self, at: At) -> At {
        let Some(layer) = at.layer() else {
            return at;
        };
        let source = at.in_layer(self.source_layer(layer));
        match source {
            At::Unit { layer, unit, .. } => source.unit(self.source_unit(layer, unit)),
            _ => source,
        }
    }

    /// The teacher's whole weight, in the layer behind a layer of the student.
    pub fn read_teacher(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let source = self.in_teacher(at);
        let Some(param) = self.teacher_spec().find(source, role, kind) else {
            let message = format!("the teacher has no {role} ({kind:?}) in {source}");
            return Err(Error::Internal(message));
        };
        laid_out(self.teacher(), param)
    }

    /// The same a few rows after another: a head is too large to be held in f64.
    ///
    /// # Errors
    /// As [`StudentEditor::read_teacher`], and those of `look`.
    pub fn for_rows_of_teacher(
        &self,
        at: At,
        role: Role,
        look: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let source = self.in_teacher(at);
        let param = self.teacher_spec().find(source, role, ParamKind::Weight);
        let Some(param) = param else {
            let message = format!("the teacher has no {role} in {source}");
            return Err(Error::Internal(message));
        };
        let rows = spans(self.teacher(), param);
        rows.into_iter()
            .try_for_each(|rows| look(&laid_out_rows(self.teacher(), param, rows)?))
    }

    /// Refits a projection that reads the stream: W + W_all·Δ, where Δ [E, C] tells from the
    /// student's input what it lacks of the teacher's, and W_all is the teacher's weight over all
    /// channels, its heads, neurons and layers being the student's. W is the projection as it
    /// is, or as it was pruned where it was refitted before.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn refit_reader(
        &mut self,
        at: At,
        role: Role,
        delta_ec: &Tensor,
        is_again: bool,
    ) -> Result<()> {
        let param = self.param(at, role, ParamKind::Weight)?;
        let mut plan = self.plan().clone();
        plan.kept.remove(HIDDEN);
        let (teacher, spec) = (self.teacher(), self.pruned_spec());
        let all = PrunedView::new(teacher, spec, &plan)?;
        let pruned = PrunedView::new(teacher, spec, self.plan())?;
        let student = self.student()?;
        let before: &dyn TensorSource = if is_again { &pruned } else { &student };
        let stored = student
            .info(&param.name())
            .and_then(|info| kind_of(info.dtype));
        let stored = stored.ok_or_else(|| not_in_student(&param.name()))?;
        let factor = self.factor_of(&param.name());
        let mut parts = Vec::new();
        for rows in spans(&student, param) {
            let added = laid_out_rows(&all, param, rows.clone())?.f_matmul(delta_ec)?;
            let added = added.f_mul_scalar(factor)?;
            let before = laid_out_rows(before, param, rows)?;
            let before = before.f_mul_scalar(if is_again { factor } else { 1.0 })?;
            let refitted = before.f_add(&added)?;
            parts.push(refitted.f_to_kind(stored)?);
        }
        let refitted = self.without_taken(param, Tensor::f_cat(&parts, 0)?)?;
        drop((parts, all, pruned, student));
        self.replace(at, role, ParamKind::Weight, &refitted)
    }

    /// The teacher's gain of a norm in f64, in the layer behind a layer of the student.
    ///
    /// # Errors
    /// As [`StudentEditor::read_teacher`].
    pub fn teachers_gain(&self, at: At, role: Role) -> Result<Tensor> {
        let gain_e = self.read_teacher(at, role, ParamKind::Weight)?;
        let source = self.in_teacher(at);
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
        let (param, row) = self.placed(at, role, kind)?;
        let (name, is_transposed) = (param.name(), param.transposed);
        let info = self.student()?.info(&name);
        let info = info.ok_or_else(|| not_in_student(&name))?;
        let tensor = if is_transposed {
            tensor.f_transpose(-2, -1)?
        } else {
            tensor.shallow_clone()
        };
        let shape: Vec<usize> = tensor.size().iter().map(|&side| side as usize).collect();
        let expected = info.shape.get(usize::from(row.is_some())..);
        if Some(shape.as_slice()) != expected {
            return Err(self.broken(format!(
                "`{name}`: expected shape {:?}, got {shape:?}",
                expected.unwrap_or_default()
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
        let Some(row) = row else {
            self.settle_factor(&name);
            return self.changes.put(&name, &stored);
        };
        if self.changes.get(&name).is_none() {
            let student = self.student()?;
            let all = student.read_rows(&name, 0..info.shape.first().copied().unwrap_or(0))?;
            drop(student);
            self.settle_factor(&name);
            self.changes.put(&name, &all.copy())?;
        }
        let row_1 = Tensor::f_from_slice(&[row as i64])?;
        self.changes
            .put_rows(&name, &row_1, &stored.f_unsqueeze(0)?)
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
        let source = self.in_teacher(at);
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
        // Experts have names, which would be those of others.
        plan.kept.retain(|dim, _| {
            let (kind, layer) = split_dim(dim);
            layer.is_none() || kind == EXPERTS
        });
        let wide = PrunedView::new(self.teacher(), self.pruned_spec(), &plan)?;
        let mut changes = BTreeMap::new();
        for (name, held) in self.changes.iter() {
            if wide
                .info(name)
                .is_some_and(|info| info.shape == held.shape())
            {
                changes.insert(name, held);
            }
        }
        Ok(ReconstructedView::new(wide, changes, &self.factors))
    }

    /// A weight, or of which row of which one it is.
    fn placed(&self, at: At, role: Role, kind: ParamKind) -> Result<(&Param, Option<usize>)> {
        if let At::Unit { unit, .. } = at
            && self.stacked_roles(at.whole()).contains(&role)
        {
            let param = self.param(at.whole(), role, kind)?;
            let experts = param.sides.first();
            if experts.is_some_and(|experts| unit < self.spec().len(experts)) {
                return Ok((param, Some(unit)));
            }
        }
        Ok((self.param(at, role, kind)?, None))
    }

    pub(super) fn param(&self, at: At, role: Role, kind: ParamKind) -> Result<&Param> {
        self.spec().find(at, role, kind).ok_or_else(|| {
            let family = &self.spec().architecture;
            Error::Internal(format!("`{family}` has no {role} ({kind:?}) in {at}"))
        })
    }
}

pub(super) fn not_in_student(name: &str) -> Error {
    Error::Internal(format!("no tensor `{name}` in the student"))
}

/// Rows of a weight that are looked at together.
pub const ROWS_AT_ONCE: usize = 8192;

/// Outputs of a weight that are looked at together; none for all, where they are no rows.
pub(super) fn spans(source: &dyn TensorSource, param: &Param) -> Vec<Option<Range<usize>>> {
    // Of all experts one after the other.
    let step = match param.sides.len() {
        3 => 1,
        _ if param.transposed => return vec![None],
        _ => ROWS_AT_ONCE,
    };
    let n_rows = n_rows(source, param);
    let first = (0..n_rows).step_by(step);
    first
        .map(|first| Some(first..n_rows.min(first + step)))
        .collect()
}

fn n_rows(source: &dyn TensorSource, param: &Param) -> usize {
    let info = source.info(&param.name());
    info.and_then(|info| info.shape.first().copied())
        .unwrap_or(1)
}

/// [out | in] in f64.
pub(super) fn laid_out(source: &dyn TensorSource, param: &Param) -> Result<Tensor> {
    laid_out_rows(source, param, None)
}

pub(super) fn laid_out_rows(
    source: &dyn TensorSource,
    param: &Param,
    rows: Option<Range<usize>>,
) -> Result<Tensor> {
    let rows = rows.unwrap_or_else(|| 0..n_rows(source, param));
    let stored = exact(&source.read_rows(&param.name(), rows)?)?;
    if param.transposed {
        Ok(stored.f_transpose(-2, -1)?.f_contiguous()?)
    } else {
        Ok(stored)
    }
}
