//! Residual streams of student and teacher over all calibration text, one part of a layer at a
//! time.
//!
//! One layer of each is in memory; the streams of all windows are, or wait in a folder.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tracing::debug_span;

use super::ahead::Ahead;
use super::editor::StudentEditor;
use super::half::Half;
use super::kept::{kept_channels, of_inputs};
use super::projections::{Capture, HELD_OUT, ProjectionSet, ProjectionStats};
use super::store::TensorStore;
use super::stream_state::Embedded;
use super::unit_writers::{UnitInputs, UnitWriters};
use crate::error::{Error, Present, Result};
use crate::model::{Block, Site, Tap};
use crate::spec::{At, ParamKind, Role, Sublayer, Writer};

/// What the student's stream should be after each part of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The dense teacher's on its own stream, at the kept channels; where layers were dropped,
    /// after the last of them.
    #[default]
    Teacher,
    /// That of the same layer with all its heads and neurons, on the student's own stream.
    Own,
}

/// How a reconstruction goes through the student.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sweep {
    /// What the student's stream should be.
    pub reference: Reference,
    /// Whether some batches are counted by themselves too.
    pub holds_out: bool,
    /// Whether norms after sums are shown, where the reference is the teacher.
    pub norms: bool,
}

/// Who looks at projections, and may replace weights.
type Visit<'v, 'e> = &'v mut dyn FnMut(&mut StudentEditor<'e>, &ProjectionStats) -> Result<()>;

/// Both streams under way.
pub(super) struct Streams {
    pub(super) sweep: Sweep,
    pub(super) teacher: Option<Embedded>,
    pub(super) student: Embedded,
    /// Where the teacher stood before each part of the layer under way and of those dropped behind
    /// it, where it runs through all of them first.
    pub(super) ahead: Option<Ahead>,
    /// What the student's sums of each batch should be.
    pub(super) wanted: TensorStore,
}

impl StudentEditor<'_> {
    /// Goes through the student from front to back and shows every [`ProjectionSet`] to `visit`,
    /// which may replace weights there; what follows runs on the stream as reconstructed so far.
    /// Readers are shown where the reference is the teacher, and norms after sums where the sweep
    /// says so; writers whose output is normed before it is added are not shown, since they are not
    /// linear in the stream.
    ///
    /// Experts are shown one after the other from one pass of their layer. What a visitor changes
    /// of one's writer is taken from what the next ones lack; other changes are not seen by them.
    ///
    /// A plan that removes nothing leaves no residuals, so nothing is shown then.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn for_each_projection(
        &mut self,
        sweep: Sweep,
        visit: &mut dyn FnMut(&mut Self, &ProjectionStats) -> Result<()>,
    ) -> Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        let is_teachers = sweep.reference == Reference::Teacher;
        if !is_teachers && !self.taken.is_empty() {
            return Err(Error::Recipe(format!(
                "`{}`: layers that took units of dropped ones are fitted to the teacher alone; \
                 leave the target out, or `layer_merge`",
                self.tag
            )));
        }
        let _no_grad = tch::no_grad_guard();
        let mut streams = Streams::enter(self, sweep)?;
        let progress = self.calibration()?.progress;
        let layers = match self.inputs.only {
            Some(only) => only.layer..only.layer + 1,
            None => 0..self.n_layers(),
        };
        progress.start("reconstruct, layers", layers.len() as u64);
        for layer_idx in layers {
            let _span = debug_span!("layer", layer_idx).entered();
            let parts: Vec<(At, Sublayer)> = self
                .spec()
                .places(layer_idx)
                .map(|(at, part)| (at, part.clone()))
                .collect();
            for (number, (at, part)) in parts.iter().enumerate() {
                let half = Half {
                    layer_idx,
                    number,
                    at: *at,
                    part,
                    is_last: number + 1 == parts.len(),
                };
                let is_before = self.inputs.only.is_some() && self.is_whole_up_to(*at);
                streams.fit(self, &half, is_before, visit)?;
            }
            progress.advance(1, "");
        }
        progress.finish();
        let has_transform = self
            .spec()
            .find(At::Model, Role::HEAD_TRANSFORM, ParamKind::Weight)
            .is_some();
        if is_teachers && !has_transform && self.inputs.only.is_none() {
            let stats = streams.head(self)?;
            visit(self, &stats)?;
        }
        Ok(())
    }
}

impl Streams {
    /// Embeds the text; a teacher aimed at runs up to the first layer that the student kept.
    fn enter(editor: &StudentEditor, sweep: Sweep) -> Result<Self> {
        let is_teachers = sweep.reference == Reference::Teacher;
        let student = entering(editor, true)?;
        let teacher = is_teachers.then(|| entering(editor, false)).transpose()?;
        let n_batches = editor.calibration()?.batches().len();
        let mut streams = Streams {
            sweep: Sweep {
                holds_out: sweep.holds_out && n_batches >= HELD_OUT,
                ..sweep
            },
            teacher,
            student,
            ahead: None,
            wanted: TensorStore::new(editor.inputs.spill, "wanted")?,
        };
        let n_dropped = match editor.inputs.only {
            Some(_) => 0,
            None => editor.source_layer(0),
        };
        for source_layer in 0..n_dropped {
            streams.run_teacher(editor, source_layer, false)?;
        }
        Ok(streams)
    }

    fn stats(&self, editor: &StudentEditor, projections: ProjectionSet) -> Result<ProjectionStats> {
        let about_means = editor.have_biases(&projections);
        let stats = ProjectionStats::new(projections, self.sweep.holds_out)?;
        Ok(stats.about_means(about_means))
    }

    /// Shows what this part of a layer reads and writes, and moves past it. Before anything differs
    /// (`is_before`) there is nothing to fit.
    fn fit<'e>(
        &mut self,
        editor: &mut StudentEditor<'e>,
        half: &Half,
        is_before: bool,
        visit: Visit<'_, 'e>,
    ) -> Result<()> {
        if half.number == 0 {
            self.run_ahead(editor, half)?;
        }
        // Of a part that went there is nothing to fit: what follows makes up for it.
        let is_teachers = self.sweep.reference == Reference::Teacher;
        if is_teachers && !half.part.mixer.is_absent() && !is_before {
            let own = self.readers(editor, half, None)?;
            visit(editor, &own)?;
            for from in editor.taken_from(half.at) {
                let taken = self.readers(editor, half, Some(from))?;
                visit(editor, &taken)?;
            }
        }
        self.aim(editor, half)?;
        if !is_before {
            let (of_all, of_units) = half.writers();
            if let Some(writer) = of_all {
                let stats = self.writer(editor, half, writer)?;
                visit(editor, &stats)?;
            }
            if let Some(writer) = of_units {
                self.units(editor, half, writer, visit)?;
            }
            if self.sweep.norms && is_teachers && half.part.after_sum.is_some() {
                let stats = self.sum_norm(editor, half)?;
                visit(editor, &stats)?;
            }
        }
        self.step(editor, half)
    }

    /// Before teacher and student pass this part of their layer; `from` is the dropped layer whose
    /// units are looked at.
    fn readers(
        &self,
        editor: &StudentEditor,
        half: &Half,
        from: Option<usize>,
    ) -> Result<ProjectionStats> {
        let student = editor.student_block(half.layer_idx)?;
        let source_layer = from.unwrap_or_else(|| editor.source_layer(half.layer_idx));
        let teacher = editor.teacher_block(source_layer)?;
        let roles = half.part.mixer.ports().readers;
        let projections = ProjectionSet {
            at: half.at,
            roles,
            is_writer: false,
            from,
        };
        let mut stats = self.stats(editor, projections)?;
        let text = editor.calibration()?;
        for round in 0..self.student.states.len() {
            let of_student = self.student.states.before(half.number, round)?;
            let of_teacher = match &self.ahead {
                Some(ahead) => ahead.state(source_layer, half.number, round)?,
                None => self.teacher()?.states.before(half.number, round)?,
            };
            let student_bte = student.input(half.number, of_student.stream())?;
            let teacher_bte = teacher.input(half.number, of_teacher.stream())?;
            let of_batch = of_inputs(editor, &stats, &student_bte, &teacher_bte)?;
            text.in_order(round, of_batch, &mut |batch, given| stats.add(batch, given))?;
        }
        Ok(stats)
    }

    /// After the last layer.
    fn head(&self, editor: &StudentEditor) -> Result<ProjectionStats> {
        let any = BTreeSet::from([0]);
        let (student, teacher) = (
            editor.frame(true, &any, false)?,
            editor.frame(false, &any, false)?,
        );
        let projections = ProjectionSet {
            at: At::Model,
            roles: vec![Role::HEAD],
            is_writer: false,
            from: None,
        };
        let mut stats = self.stats(editor, projections)?;
        let text = editor.calibration()?;
        for round in 0..self.student.states.len() {
            let student_bte = student.finish(self.student.states.before(0, round)?.now_bte)?;
            let teacher_bte = teacher.finish(self.teacher()?.states.before(0, round)?.now_bte)?;
            let of_batch = of_inputs(editor, &stats, &student_bte, &teacher_bte)?;
            text.in_order(round, of_batch, &mut |batch, given| stats.add(batch, given))?;
        }
        Ok(stats)
    }

    /// What the writer of this part reads, and what the student's stream lacks after it.
    fn writer(
        &self,
        editor: &StudentEditor,
        half: &Half,
        writer: Writer,
    ) -> Result<ProjectionStats> {
        let block = editor.student_block(half.layer_idx)?;
        let mut stats = self.stats(
            editor,
            ProjectionSet {
                at: half.at,
                roles: vec![writer.role],
                is_writer: true,
                from: None,
            },
        )?;
        stats.scale = half.part.scale;
        let text = editor.calibration()?;
        for round in 0..self.student.contexts.len() {
            let mut spot = Capture {
                site: Site::Inside {
                    at: half.at,
                    port: writer.reads,
                },
                x: None,
            };
            let (r_bte, added_bte) = self.lacking(&block, half, round, &mut spot)?;
            if let Some(x_btc) = spot.x {
                let x_btc = if stats.scale == 1.0 {
                    x_btc
                } else {
                    x_btc.f_mul_scalar(stats.scale)?
                };
                let of_batch = stats.moments(&x_btc, &r_bte, &r_bte.f_add(&added_bte)?)?;
                text.in_order(round, of_batch, &mut |batch, given| stats.add(batch, given))?;
            }
        }
        Ok(stats)
    }

    /// What the norm after this part's sum gives, and what that lacks of the teacher's.
    fn sum_norm(&self, editor: &StudentEditor, half: &Half) -> Result<ProjectionStats> {
        let block = editor.student_block(half.layer_idx)?;
        let mut stats = self.stats(
            editor,
            ProjectionSet {
                at: half.at,
                roles: vec![Role::SUM_NORM],
                is_writer: false,
                from: None,
            },
        )?;
        let text = editor.calibration()?;
        for (round, context) in self.student.contexts.iter().enumerate() {
            let mut state = self.student.states.before(half.number, round)?;
            let _ = state.pass(&block, half.number, context)?;
            let wanted_bte = match &self.ahead {
                Some(ahead) => ahead.settled(half.number, round)?,
                None => self.teacher()?.states.before(0, round)?.now_bte,
            };
            let wanted_bte = kept_channels(editor, &wanted_bte, 2)?.f_to_kind(Kind::Float)?;
            let given_bte = state.now_bte.f_to_kind(Kind::Float)?;
            let r_bte = wanted_bte.f_sub(&given_bte)?;
            let of_batch = stats.moments(&given_bte, &r_bte, &wanted_bte)?;
            text.in_order(round, of_batch, &mut |batch, given| stats.add(batch, given))?;
        }
        Ok(stats)
    }

    /// Of a batch, what the student's stream lacks after this part, and what the part added, both
    /// [B, T, E] in f32.
    fn lacking(
        &self,
        block: &Block,
        half: &Half,
        round: usize,
        tap: &mut dyn Tap,
    ) -> Result<(Tensor, Tensor)> {
        let context = self.student.contexts.get(round).present("a batch")?;
        let state = self.student.states.before(half.number, round)?;
        let sum_bte = block.added(half.number, state.stream(), context, tap)?;
        let wanted_bte = self.wanted.read(&round.to_string())?;
        let r_bte = wanted_bte
            .f_to_device(sum_bte.device())?
            .f_to_kind(Kind::Float)?
            .f_sub(&sum_bte.f_to_kind(Kind::Float)?)?;
        let added_bte = sum_bte.f_sub(&state.now_bte)?.f_to_kind(Kind::Float)?;
        Ok((r_bte, added_bte))
    }

    /// Shows what the equal parts of this one read, each with what those before it leave of what
    /// the stream lacks.
    fn units<'e>(
        &self,
        editor: &mut StudentEditor<'e>,
        half: &Half,
        writer: Writer,
        visit: Visit<'_, 'e>,
    ) -> Result<()> {
        let mut units = UnitWriters::new(editor.inputs.spill, half, writer)?;
        let block = editor.student_block(half.layer_idx)?;
        for round in 0..self.student.contexts.len() {
            let mut seen = UnitInputs::new(half.at, writer);
            let (r_bte, added_bte) = self.lacking(&block, half, round, &mut seen)?;
            units.push(seen, &r_bte, &added_bte)?;
        }
        drop(block);
        for at in editor.units_of(half.at, writer) {
            let stats = units.stats(editor, at, self.sweep.holds_out)?;
            // Rows in memory are overwritten where they lie.
            let before_ec = editor.read(at, writer.role, ParamKind::Weight)?.copy();
            visit(editor, &stats)?;
            let after_ec = editor.read(at, writer.role, ParamKind::Weight)?;
            if after_ec != before_ec {
                units.take(at, &after_ec.f_sub(&before_ec)?)?;
            }
        }
        Ok(())
    }

    /// Moves the student past one part of a layer.
    fn step(&mut self, editor: &StudentEditor, half: &Half) -> Result<()> {
        let block = editor.student_block(half.layer_idx)?;
        self.student.pass(&block, half.number, &mut |_, _| Ok(()))
    }
}

/// The text before the first layer, or before the only one that differs.
pub(super) fn entering(editor: &StudentEditor, of_student: bool) -> Result<Embedded> {
    let name = if of_student { "student" } else { "teacher" };
    match editor.inputs.only {
        Some(only) => only.streams.copied(editor.inputs.spill, name),
        None => editor.embedded(editor.calibration()?, of_student),
    }
}
