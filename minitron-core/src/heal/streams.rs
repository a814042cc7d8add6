//! Residual streams of student and teacher over all calibration text, half a layer at a time.
//!
//! One layer of each is in memory, and the streams of all windows.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tracing::debug_span;

use super::joint::{Joint, Part, Place, Spot};
use super::patient::Patient;
use crate::blueprint::{HIDDEN, Role, Slot};
use crate::error::Result;
use crate::model::{Block, Frame, Input, Layout, NoTap};

/// What the student's stream should be after each half of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// The dense teacher's on its own stream, at the kept channels; where layers were dropped, after the last of them.
    #[default]
    Teacher,
    /// That of the same layer with all its heads and neurons, on the student's own stream.
    Own,
}

struct Streams {
    aim: Aim,
    /// One per batch.
    layouts: Vec<Layout>,
    teacher_bte: Vec<Tensor>,
    student_bte: Vec<Tensor>,
}

impl Patient<'_> {
    /// Goes through the student from front to back and shows every [`Place`] to `visit`, which may replace weights there; what
    /// follows runs on the stream as healed so far. Readers are shown where the aim is the teacher.
    ///
    /// A plan that removes nothing leaves no residuals, so nothing is shown then.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn sweep(&mut self, aim: Aim, visit: &mut dyn FnMut(&mut Self, &Joint) -> Result<()>) -> Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        let mut streams = Streams::enter(self, aim)?;
        let progress = self.calibration()?.progress;
        progress.start("heal, layers", self.n_layers() as u64);
        for layer_idx in 0..self.n_layers() {
            let _span = debug_span!("layer", layer_idx).entered();
            for part in [Part::Attention, Part::Mlp] {
                if aim == Aim::Teacher {
                    let joint = streams.readers(self, part, layer_idx)?;
                    visit(self, &joint)?;
                }
                let joint = streams.writer(self, part, layer_idx)?;
                visit(self, &joint)?;
                streams.step(self, part, layer_idx)?;
            }
            progress.advance(1, "");
        }
        progress.finish();
        let has_transform = self.blueprint().find(Role::HeadTransform, Slot::Weight, None).is_some();
        if aim == Aim::Teacher && !has_transform {
            let joint = streams.head(self)?;
            visit(self, &joint)?;
        }
        Ok(())
    }

    fn frame(&self, of_student: bool, tokens: &BTreeSet<u32>) -> Result<Frame> {
        let options = self.load_options();
        match of_student {
            true => Frame::open(&self.student()?, self.blueprint(), options, tokens, false),
            false => Frame::open(self.teacher(), self.teacher_blueprint(), options, tokens, false),
        }
    }

    /// Token ids of every batch of the calibration text, embedded by student or teacher.
    pub(super) fn embedded(&self, of_student: bool) -> Result<(Vec<Tensor>, Vec<Layout>)> {
        let calibration = self.calibration()?;
        let windows = calibration.windows;
        let tokens: BTreeSet<u32> = (0..windows.len()).flat_map(|window| windows.window(window)).copied().collect();
        let frame = self.frame(of_student, &tokens)?;
        let (mut streams, mut layouts) = (Vec::new(), Vec::new());
        for batch in windows.batches(calibration.batch_size) {
            let device = self.load_options().device;
            let ids_bt = windows.batch(batch.clone(), device)?;
            let positions_bt = windows.positions(batch, device)?;
            let positions_bt = positions_bt.as_ref();
            streams.push(frame.embed(Input { ids_bt: &ids_bt, seen_bt: None, positions_bt }, 0)?);
            layouts.push(frame.layout(0, ids_bt.size2()?.1, None, positions_bt)?);
        }
        Ok((streams, layouts))
    }
}

impl Streams {
    /// Embeds the text; a teacher aimed at runs up to the first layer that the student kept.
    fn enter(patient: &Patient, aim: Aim) -> Result<Self> {
        let (student_bte, layouts) = patient.embedded(true)?;
        let teacher_bte = if aim == Aim::Teacher { patient.embedded(false)?.0 } else { Vec::new() };
        let mut streams = Streams { aim, layouts, teacher_bte, student_bte };
        if aim == Aim::Teacher {
            for source_layer in 0..patient.source_layer(0) {
                streams.run_teacher(patient, source_layer)?;
            }
        }
        Ok(streams)
    }

    /// Before teacher and student pass this half of their layer.
    fn readers(&self, patient: &Patient, part: Part, layer_idx: usize) -> Result<Joint> {
        let student = patient.student_block(layer_idx)?;
        let teacher = patient.teacher_block(patient.source_layer(layer_idx))?;
        let mut joint = Joint::new(part.readers(), Some(layer_idx))?;
        for (student_bte, teacher_bte) in self.student_bte.iter().zip(&self.teacher_bte) {
            add_inputs(patient, &mut joint, &part.input(&student, student_bte)?, &part.input(&teacher, teacher_bte)?)?;
        }
        Ok(joint)
    }

    /// After the last layer.
    fn head(&self, patient: &Patient) -> Result<Joint> {
        let any = BTreeSet::from([0]);
        let (student, teacher) = (patient.frame(true, &any)?, patient.frame(false, &any)?);
        let mut joint = Joint::new(Place::Head, None)?;
        for (student_bte, teacher_bte) in self.student_bte.iter().zip(&self.teacher_bte) {
            let student_bte = student.finish(student_bte.shallow_clone())?;
            add_inputs(patient, &mut joint, &student_bte, &teacher.finish(teacher_bte.shallow_clone())?)?;
        }
        Ok(joint)
    }

    /// Moves the teacher past this half of its layer; the student stays before it.
    fn writer(&mut self, patient: &Patient, part: Part, layer_idx: usize) -> Result<Joint> {
        let wanted_bte = match self.aim {
            Aim::Teacher => self.teacher_sums(patient, part, layer_idx)?,
            Aim::Own => self.own_sums(patient, part, layer_idx)?,
        };
        let block = patient.student_block(layer_idx)?;
        let mut joint = Joint::new(part.writer(), Some(layer_idx))?;
        for ((x_bte, layout), wanted_bte) in self.student_bte.iter().zip(&self.layouts).zip(&wanted_bte) {
            let mut spot = Spot { site: part.site(layer_idx), x: None };
            let sum_bte = part.summed(&block, x_bte, layout, &mut spot)?;
            let r_bte = wanted_bte.f_to_kind(Kind::Float)?.f_sub(&sum_bte.f_to_kind(Kind::Float)?)?;
            if let Some(x_btc) = spot.x {
                joint.add(&x_btc, &r_bte)?;
            }
        }
        Ok(joint)
    }

    /// Moves the student past one half of a layer.
    fn step(&mut self, patient: &Patient, part: Part, layer_idx: usize) -> Result<()> {
        let block = patient.student_block(layer_idx)?;
        for (x_bte, layout) in self.student_bte.iter_mut().zip(&self.layouts) {
            *x_bte = part.forward(&block, x_bte, layout)?;
        }
        Ok(())
    }

    fn own_sums(&self, patient: &Patient, part: Part, layer_idx: usize) -> Result<Vec<Tensor>> {
        let whole = patient.wide_block(layer_idx)?;
        let streams = self.student_bte.iter().zip(&self.layouts);
        streams.map(|(x_bte, layout)| part.summed(&whole, x_bte, layout, &mut NoTap)).collect()
    }

    /// Moves the teacher past one half of a layer, and past the layers that the student dropped after it.
    fn teacher_sums(&mut self, patient: &Patient, part: Part, layer_idx: usize) -> Result<Vec<Tensor>> {
        let source_layer = patient.source_layer(layer_idx);
        let mut sums = self.run_teacher_half(patient, part, source_layer)?;
        if part == Part::Mlp {
            for dropped in source_layer + 1..patient.source_layer(layer_idx + 1) {
                sums = self.run_teacher(patient, dropped)?;
            }
        }
        sums.iter().map(|sum_bte| kept_channels(patient, sum_bte, 2)).collect()
    }

    fn run_teacher(&mut self, patient: &Patient, source_layer: usize) -> Result<Vec<Tensor>> {
        self.run_teacher_half(patient, Part::Attention, source_layer)?;
        self.run_teacher_half(patient, Part::Mlp, source_layer)
    }

    /// Returns the sums before they settle: what the student's projections add up to, wherever the norms stand.
    fn run_teacher_half(&mut self, patient: &Patient, part: Part, source_layer: usize) -> Result<Vec<Tensor>> {
        let block: Block = patient.teacher_block(source_layer)?;
        let mut sums = Vec::with_capacity(self.teacher_bte.len());
        for (x_bte, layout) in self.teacher_bte.iter_mut().zip(&self.layouts) {
            let sum_bte = part.summed(&block, x_bte, layout, &mut NoTap)?;
            *x_bte = part.settle(&block, sum_bte.shallow_clone())?;
            sums.push(sum_bte);
        }
        Ok(sums)
    }
}

/// What the student's input lacks of the teacher's: all of it at dropped channels.
fn add_inputs(patient: &Patient, joint: &mut Joint, student_bte: &Tensor, teacher_bte: &Tensor) -> Result<()> {
    let eye = Tensor::f_eye(patient.teacher_blueprint().size(HIDDEN) as i64, (Kind::Float, teacher_bte.device()))?;
    let spread = student_bte.f_to_kind(Kind::Float)?.f_matmul(&kept_channels(patient, &eye, 1)?.f_transpose(0, 1)?)?;
    joint.add(student_bte, &teacher_bte.f_to_kind(Kind::Float)?.f_sub(&spread)?)
}

/// The teacher's activations at the residual channels that the student kept.
fn kept_channels(patient: &Patient, x: &Tensor, side: i64) -> Result<Tensor> {
    let kept: Vec<i64> = patient.kept(HIDDEN).iter().map(|&channel| channel as i64).collect();
    if kept.len() == patient.teacher_blueprint().size(HIDDEN) {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_index_select(side, &Tensor::f_from_slice(&kept)?.f_to_device(x.device())?)?)
}
