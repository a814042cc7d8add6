//! A student under reconstruction.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use super::projections::Fit;
use super::rotated::{RotatedView, has_layer_norms};
use super::store::TensorStore;
use super::stream_state::LayerInputs;
use super::taken::TakenUnits;
use super::turning::{check_basis, check_turns, running, untied};
use super::view::ReconstructedView;
use crate::calibrate::Calibration;
use crate::checkpoint::{Config, TensorSource};
use crate::error::{Error, Result};
use crate::model::{Block, LoadOptions};
use crate::plan::{Plan, Rankings};
use crate::plugin_spec::PluginSpec;
use crate::prune::{PrunedView, Student, source_layers};
use crate::spec::{
    At, Dim, EXPERTS, HIDDEN, ModelSpec, Role, dim_of_layer, dim_of_unit, split_unit,
};

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
    /// A folder in which streams and replaced weights wait; memory where there is none.
    pub spill: Option<&'a Path>,
    /// The one layer in which the student differs, with the text that enters it; none: all of them.
    pub only: Option<&'a LayerInputs>,
}

/// A student under reconstruction: weights are read by role, and replaced without changing any
/// source.
pub struct StudentEditor<'a> {
    pub(super) inputs: ReconstructInputs<'a>,
    plan: Plan,
    pub(super) rotation: Option<ResidualRotation<'a>>,
    config: Config,
    spec: ModelSpec,
    /// By the student's names, as they are stored.
    pub(super) changes: TensorStore,
    /// Factors of weights that are not replaced, by the student's names.
    pub(super) factors: BTreeMap<String, f64>,
    /// Those that replaced weights have in them.
    pub(super) in_weights: BTreeMap<String, f64>,
    /// What of a norm's gain was taken for granted.
    pub(super) assumed: BTreeMap<(At, Role), f64>,
    /// What was compensated, in words.
    pub(super) compensated: Vec<&'static str>,
    pub(super) reconstructed: Vec<PluginSpec>,
    fits: Vec<Fit>,
    /// Units of dropped layers in the place of others.
    pub(super) taken: Vec<TakenUnits>,
    /// Tag of the reconstruction under way.
    pub(super) tag: String,
}

/// The teacher in another basis.
pub(super) struct ResidualRotation<'a> {
    view: RotatedView<'a>,
    pub basis_ee: Tensor,
    /// As it runs.
    spec: ModelSpec,
    /// As the student is pruned from it.
    pruned: ModelSpec,
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
            changes: TensorStore::new(inputs.spill, "weights")?,
            factors: BTreeMap::new(),
            in_weights: BTreeMap::new(),
            assumed: BTreeMap::new(),
            compensated: Vec::new(),
            reconstructed: Vec::new(),
            fits: Vec::new(),
            taken: Vec::new(),
            tag: String::new(),
        };
        if inputs.compensates {
            editor.compensate()?;
        }
        Ok(editor)
    }

    // --- what it is

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

    /// What was left of what projections lacked, in the order in which they were fitted.
    pub fn fits(&self) -> &[Fit] {
        &self.fits
    }

    /// Notes what was left of what projections lacked.
    pub fn note_fit(&mut self, fit: Fit) {
        self.fits.push(fit);
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

    /// The description of the teacher's tensors that the student is pruned from: tied where it is.
    pub(super) fn pruned_spec(&self) -> &ModelSpec {
        self.rotation
            .as_ref()
            .map_or(self.inputs.spec, |rotation| &rotation.pruned)
    }

    /// The student's tensors as reconstructed so far.
    pub fn student(&self) -> Result<ReconstructedView<'_>> {
        let pruned = PrunedView::new(self.teacher(), self.pruned_spec(), &self.plan)?;
        let changes = self.changes.iter().collect();
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

    // --- the basis of the residual stream

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

    /// Whether a turned stream has no mean over channels: layer norms read it.
    pub fn is_centred(&self) -> bool {
        has_layer_norms(self.inputs.spec)
    }

    /// Turns the teacher's residual stream into the basis whose vectors are the columns of Q [E,
    /// E], most important first; the student keeps as many of the first as the plan keeps channels.
    /// Where layer norms read the stream, the kept vectors add up to the mean over all channels:
    /// Q[:, ..K]·1 / √K = 1 / √E.
    ///
    /// Tied embeddings stay tied unless `unties`: the token table then serves as the head behind
    /// the final gain that fits best, as [`TiedHead`](super::TiedHead) says.
    ///
    /// # Errors
    /// As [`StudentEditor::check_rebase`].
    pub fn rotate_residual(&mut self, basis_ee: &Tensor, unties: bool) -> Result<()> {
        self.check_rebase()?;
        let (source, spec) = (self.inputs.source, self.inputs.spec);
        check_basis(basis_ee, spec, self.spec.size(HIDDEN))?;
        let running = running(source, spec)?;
        let view = RotatedView::new(source, spec, &running, basis_ee)?;
        let mut plan = self.plan.clone();
        if let Some(kept) = plan.kept.get_mut(HIDDEN) {
            *kept = (0..kept.len()).collect();
        }
        let pruned = match unties {
            true => untied(source, spec)?,
            false => spec.clone(),
        };
        let student = Student::new(&view, &pruned, &plan)?;
        (self.plan, self.config, self.spec) = (plan, student.config, student.spec);
        self.rotation = Some(ResidualRotation {
            view,
            basis_ee: basis_ee.shallow_clone(),
            spec: running,
            pruned,
            tag: self.tag.clone(),
        });
        if let Some(head) = self.tied_head()? {
            head.start(self)?;
        }
        Ok(())
    }

    // --- layers to run

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
        let experts = self.kept(&dim_of_layer(EXPERTS, source_layer));
        // All of them: a student of one query head per key/value head has no dim for the latter.
        for whole in self.teacher_spec().dims.values() {
            if let (kind, Some(layer), unit) = split_unit(&whole.name)
                && layer == source_layer
                && kind != EXPERTS
            {
                let name = match unit {
                    None => dim_of_layer(kind, layer_idx),
                    // None are named where all stay.
                    Some(unit) if experts.is_empty() => dim_of_unit(kind, layer_idx, unit),
                    Some(unit) => match experts.iter().position(|&kept| kept == unit) {
                        Some(place) => dim_of_unit(kind, layer_idx, place),
                        None => continue,
                    },
                };
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

    pub(super) fn broken(&self, message: String) -> Error {
        Error::Plugin {
            tag: self.tag.clone(),
            origin: "reconstruction".into(),
            message,
        }
    }
}
