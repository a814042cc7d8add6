//! A student under reconstruction.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::projections::exact;
use super::rotated::{RotatedView, check_orthogonal, check_turns, untied};
use super::view::ReconstructedView;
use crate::calibrate::Calibration;
use crate::checkpoint::{Config, TensorSource, kind_of};
use crate::error::{Error, Result};
use crate::model::{Block, LoadOptions};
use crate::plan::{Plan, Rankings};
use crate::plugin_spec::PluginSpec;
use crate::prune::{PrunedView, Student, side_indices, source_layers};
use crate::spec::{At, Dim, HIDDEN, ModelSpec, Param, ParamKind, Role, dim_of_layer, split_dim};

/// What a reconstruction starts from.
#[derive(Clone, Copy)]
pub struct ReconstructInputs<'a> {
    /// The teacher's tensors.
    pub source: &'a dyn TensorSource,
    /// The teacher's description.
    pub spec: &'a ModelSpec,
    /// What the plan was ranked by, where it was.
    pub rankings: Option<&'a Rankings>,
    /// Text, where there is any.
    pub calibration: Option<Calibration<'a>>,
    /// Where passes run, and in which type.
    pub options: LoadOptions,
    /// Of everything that reconstructions draw.
    pub seed: u64,
    /// Whether what a width rescales is compensated where that follows from sizes alone.
    pub compensates: bool,
}

/// A student under reconstruction: weights are read by role, and replaced without changing any
/// source.
pub struct StudentEditor<'a> {
    inputs: ReconstructInputs<'a>,
    plan: Plan,
    rotation: Option<ResidualRotation<'a>>,
    config: Config,
    spec: ModelSpec,
    /// By the student's names, as they are stored.
    changes: BTreeMap<String, Tensor>,
    /// Factors of weights that are not replaced, by the student's names.
    pub(super) factors: BTreeMap<String, f64>,
    /// What of a norm's gain was taken for granted.
    pub(super) assumed: BTreeMap<(At, Role), f64>,
    /// What was compensated, in words.
    pub(super) compensated: Vec<&'static str>,
    pub(super) reconstructed: Vec<PluginSpec>,
    /// Tag of the reconstruction under way.
    pub(super) tag: String,
}

/// The teacher in another basis.
struct ResidualRotation<'a> {
    view: RotatedView<'a>,
    spec: ModelSpec,
    /// Tag of the reconstruction that chose it.
    tag: String,
}

impl<'a> StudentEditor<'a> {
    /// The student of a plan, as pruned; dims that the plan leaves out are whole.
    ///
    /// # Errors
    /// As [`Student::new`].
    pub fn new(inputs: ReconstructInputs<'a>, mut plan: Plan) -> Result<Self> {
        for dim in inputs.spec.dims.values() {
            plan.kept
                .entry(dim.name.clone())
                .or_insert_with(|| (0..dim.size).collect());
        }
        let Student { config, spec, .. } = Student::new(inputs.source, inputs.spec, &plan)?;
        let mut editor = StudentEditor {
            inputs,
            plan,
            rotation: None,
            config,
            spec,
            changes: BTreeMap::new(),
            factors: BTreeMap::new(),
            assumed: BTreeMap::new(),
            compensated: Vec::new(),
            reconstructed: Vec::new(),
            tag: String::new(),
        };
        if inputs.compensates {
            editor.compensate()?;
        }
        Ok(editor)
    }

    /// Multiplies a norm's gain, however it is stored.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn scale_gain(&mut self, at: At, role: Role, factor: f64) -> Result<()> {
        let param = self.param(at, role, ParamKind::Weight)?;
        let less_one = self
            .spec
            .norm_of(param)
            .is_some_and(|norm| norm.kind.stores_gain_less_one());
        let offset = if less_one { 1.0 } else { 0.0 };
        let gain = self
            .read(at, role, ParamKind::Weight)?
            .f_add_scalar(offset)?
            .f_mul_scalar(factor)?;
        self.replace(at, role, ParamKind::Weight, &gain.f_sub_scalar(offset)?)
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
        Ok(side_indices(side, spec, &self.plan).unwrap_or_else(|| (0..spec.len(side)).collect()))
    }

    // --- what it is
    // --------------------------------------------------------------------------------------------------

    /// Kept units per dim, in the numbering of [`StudentEditor::teacher`].
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether no reconstruction has replaced anything yet.
    pub fn is_untouched(&self) -> bool {
        self.changes.is_empty() && self.factors.is_empty() && self.rotation.is_none()
    }

    /// Whether the plan removes nothing.
    pub fn is_whole(&self) -> bool {
        let dims = &self.teacher_spec().dims;
        self.plan
            .kept
            .iter()
            .all(|(dim, kept)| dims.get(dim).is_none_or(|dim| dim.size == kept.len()))
    }

    /// Seed of whatever a reconstruction draws.
    pub fn seed(&self) -> u64 {
        self.inputs.seed
    }

    /// Reconstructions so far, with all their parameters.
    pub fn reconstructed(&self) -> &[PluginSpec] {
        &self.reconstructed
    }

    /// Tag of the reconstruction that turned the residual stream, where one did: hidden indices of
    /// the plan are components then.
    pub fn hidden_basis(&self) -> Option<&str> {
        self.rotation.as_ref().map(|rotation| rotation.tag.as_str())
    }

    /// What the student's `config.json` will say.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The student's description.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The teacher's tensors, in the basis that the plan counts channels in.
    pub fn teacher(&self) -> &dyn TensorSource {
        self.rotation
            .as_ref()
            .map_or(self.inputs.source, |rotation| &rotation.view)
    }

    /// The teacher's description.
    pub fn teacher_spec(&self) -> &ModelSpec {
        self.rotation
            .as_ref()
            .map_or(self.inputs.spec, |rotation| &rotation.spec)
    }

    /// The student's tensors as reconstructed so far.
    pub fn student(&self) -> Result<ReconstructedView<'_>> {
        let pruned = PrunedView::new(self.teacher(), self.teacher_spec(), &self.plan)?;
        let changes = self
            .changes
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        Ok(ReconstructedView::new(pruned, changes, &self.factors))
    }

    /// The student's layers.
    pub fn n_layers(&self) -> usize {
        self.spec.n_layers()
    }

    /// The teacher's layer behind a layer of the student; past the last one, the teacher's number
    /// of layers.
    pub fn source_layer(&self, layer_idx: usize) -> usize {
        let layers = source_layers(self.teacher_spec(), &self.plan);
        layers
            .get(layer_idx)
            .copied()
            .unwrap_or_else(|| self.teacher_spec().n_layers())
    }

    /// Kept units of a dim, ascending; none for a dim that is not prunable.
    pub fn kept(&self, dim: &str) -> &[usize] {
        // Absent where no axis cuts it.
        self.plan
            .kept
            .get(dim)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// All units of a dim, best first, one list for each part in which equally many are kept.
    ///
    /// # Errors
    /// `Recipe` for a plan that no scores stand behind.
    pub fn ranked(&self, dim: &str) -> Result<Vec<Vec<usize>>> {
        let ranking = self
            .inputs
            .rankings
            .and_then(|rankings| rankings.by_dim.get(dim))
            .ok_or_else(|| {
                Error::Recipe(format!(
                    "`{}` needs the order of `{dim}`: give the scores that the plan comes from",
                    self.tag
                ))
            })?;
        let order: Vec<usize> = ranking.order().collect();
        let dims = &self.teacher_spec().dims;
        let by = dims
            .get(dim)
            .and_then(|dim| dim.partition.as_ref())
            .and_then(|by| dims.get(by));
        let per_part = order.len() / by.map_or(1, |by| by.size).max(1);
        Ok(order
            .chunks(per_part.max(1))
            .map(<[usize]>::to_vec)
            .collect())
    }

    /// The calibration text.
    ///
    /// # Errors
    /// `Recipe` where there is none.
    pub fn calibration(&self) -> Result<Calibration<'a>> {
        self.inputs.calibration.ok_or_else(|| {
            Error::Recipe(format!(
                "reconstruction `{}` needs calibration text: give --data",
                self.tag
            ))
        })
    }

    // --- weights
    // -----------------------------------------------------------------------------------------------------

    /// A weight of the student, as a layer multiplies with it, [out | in], in f64 on the CPU.
    ///
    /// # Errors
    /// `Internal` where the family has none: ask [`ModelSpec::find`] first.
    pub fn read(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        laid_out(&self.student()?, self.param(at, role, kind)?)
    }

    /// The same of the student with all heads and neurons: only its channels and layers are pruned.
    pub fn read_all_heads(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        laid_out(&self.wide_view()?, self.param(at, role, kind)?)
    }

    /// The same of the teacher's weight with all channels, as pruned: its heads, neurons and layers
    /// are the student's.
    pub fn read_all_channels(&self, at: At, role: Role, kind: ParamKind) -> Result<Tensor> {
        let mut plan = self.plan.clone();
        plan.kept.remove(HIDDEN);
        laid_out(
            &PrunedView::new(self.teacher(), self.teacher_spec(), &plan)?,
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

    // --- the basis of the residual stream
    // ----------------------------------------------------------------------------

    /// Whether the residual stream can still be turned.
    ///
    /// # Errors
    /// `Recipe` for families whose norms do not turn with it, and after other reconstructions.
    pub fn check_rebase(&self) -> Result<()> {
        check_turns(self.inputs.spec)?;
        if self.reconstructed.is_empty() && self.changes.is_empty() && self.rotation.is_none() {
            return Ok(());
        }
        Err(Error::Recipe(format!(
            "`{}` changes what all weights mean: name it first, and once",
            self.tag
        )))
    }

    /// Turns the teacher's residual stream into the basis whose vectors are the columns of Q [E,
    /// E], most important first; the student keeps as many of the first as the plan keeps channels.
    pub fn rotate_residual(&mut self, basis_ee: &Tensor) -> Result<()> {
        self.check_rebase()?;
        check_orthogonal(basis_ee, self.inputs.spec.size(HIDDEN))?;
        let (_, spec) = untied(self.inputs.source, self.inputs.spec)?;
        let view = RotatedView::new(self.inputs.source, self.inputs.spec, &spec, basis_ee)?;
        let mut plan = self.plan.clone();
        if let Some(kept) = plan.kept.get_mut(HIDDEN) {
            *kept = (0..kept.len()).collect();
        }
        let Student {
            config,
            spec: student,
            ..
        } = Student::new(&view, &spec, &plan)?;
        (self.plan, self.config, self.spec) = (plan, config, student);
        self.rotation = Some(ResidualRotation {
            view,
            spec,
            tag: self.tag.clone(),
        });
        Ok(())
    }

    // --- layers to run
    // -----------------------------------------------------------------------------------------------

    pub(super) fn load_options(&self) -> LoadOptions {
        self.inputs.options
    }

    pub(super) fn student_block(&self, layer_idx: usize) -> Result<Block> {
        Block::open(&self.student()?, &self.spec, layer_idx, self.inputs.options)
    }

    pub(super) fn teacher_block(&self, source_layer: usize) -> Result<Block> {
        Block::open(
            self.teacher(),
            self.teacher_spec(),
            source_layer,
            self.inputs.options,
        )
    }

    /// A layer of the student with all its heads and neurons; no config need express it.
    pub(super) fn wide_block(&self, layer_idx: usize) -> Result<Block> {
        let source_layer = self.source_layer(layer_idx);
        let mut spec = self.spec.clone();
        // All of them: a student of one query head per key/value head has no dim for the latter.
        for whole in self.teacher_spec().dims.values() {
            if let (kind, Some(layer)) = split_dim(&whole.name)
                && layer == source_layer
            {
                let name = dim_of_layer(kind, layer_idx);
                spec.dims.insert(
                    name.clone(),
                    Dim {
                        name,
                        ..whole.clone()
                    },
                );
            }
        }
        Block::open(&self.wide_view()?, &spec, layer_idx, self.inputs.options)
    }

    /// Replaced weights count where pruned heads and neurons are no part of them.
    fn wide_view(&self) -> Result<ReconstructedView<'_>> {
        let mut plan = self.plan.clone();
        plan.kept.retain(|dim, _| split_dim(dim).1.is_none());
        let wide = PrunedView::new(self.teacher(), self.teacher_spec(), &plan)?;
        let mut changes = BTreeMap::new();
        for (name, tensor) in &self.changes {
            let shape = wide.info(name).map(|info| info.shape).unwrap_or_default();
            let sides = shape.iter().map(|&side| side as i64);
            if wide.info(name).is_some() && sides.eq(tensor.size()) {
                changes.insert(name.as_str(), tensor);
            }
        }
        Ok(ReconstructedView::new(wide, changes, &self.factors))
    }

    pub(super) fn param(&self, at: At, role: Role, kind: ParamKind) -> Result<&Param> {
        self.spec.find(at, role, kind).ok_or_else(|| {
            let family = &self.spec.architecture;
            Error::Internal(format!("`{family}` has no {role} ({kind:?}) in {at}"))
        })
    }

    pub(super) fn broken(&self, message: String) -> Error {
        Error::Plugin {
            tag: self.tag.clone(),
            origin: "reconstruction".into(),
            message,
        }
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
