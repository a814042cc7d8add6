//! Residual streams of student and teacher over all calibration text, half a layer at a time.
//!
//! One layer of each is in memory, and the streams of all windows.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::joint::{Joint, Part};
use super::patient::Patient;
use crate::blueprint::{HIDDEN, Slot};
use crate::error::Result;
use crate::model::{Block, Frame, NoTap, Rope};

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
    ropes: Vec<Option<Rope>>,
    teacher_bte: Vec<Tensor>,
    student_bte: Vec<Tensor>,
}

impl Patient<'_> {
    /// Goes through the student from front to back and shows every projection into the residual stream to `visit`, which may
    /// replace weights of that layer; what follows runs on the stream as healed so far.
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
        let progress = self.progress();
        progress.start("heal, layers", self.n_layers() as u64);
        for layer_idx in 0..self.n_layers() {
            for part in [Part::Attention, Part::Mlp] {
                let joint = streams.joint(self, part, layer_idx)?;
                visit(self, &joint)?;
                streams.step(self, part, layer_idx)?;
            }
            progress.advance(1, "");
        }
        progress.finish();
        Ok(())
    }

    /// Token ids of every batch of the calibration text, embedded by student or teacher.
    pub(super) fn embedded(&self, of_student: bool) -> Result<(Vec<Tensor>, Vec<Option<Rope>>)> {
        let calibration = self.calibration()?;
        let windows = calibration.windows;
        let tokens: BTreeSet<u32> = (0..windows.len()).flat_map(|window| windows.window(window)).copied().collect();
        let options = self.load_options();
        let frame = match of_student {
            true => Frame::open(&self.view()?, self.blueprint(), options, &tokens, false)?,
            false => Frame::open(self.teacher(), self.teacher_blueprint(), options, &tokens, false)?,
        };
        let (mut streams, mut ropes) = (Vec::new(), Vec::new());
        for batch in windows.batches(calibration.batch_size) {
            let ids_bt = windows.batch(batch, options.device)?;
            streams.push(frame.embed(&ids_bt, 0)?);
            ropes.push(frame.rope(0, ids_bt.size2()?.1)?);
        }
        Ok((streams, ropes))
    }
}

impl Streams {
    /// Embeds the text; a teacher aimed at runs up to the first layer that the student kept.
    fn enter(patient: &Patient, aim: Aim) -> Result<Self> {
        let (student_bte, ropes) = patient.embedded(true)?;
        let teacher_bte = if aim == Aim::Teacher { patient.embedded(false)?.0 } else { Vec::new() };
        let mut streams = Streams { aim, ropes, teacher_bte, student_bte };
        if aim == Aim::Teacher {
            for source_layer in 0..patient.source_layer(0) {
                streams.run_teacher(patient, source_layer)?;
            }
        }
        Ok(streams)
    }

    fn joint(&mut self, patient: &Patient, part: Part, layer_idx: usize) -> Result<Joint> {
        let wanted_bte = match self.aim {
            Aim::Teacher => self.teacher_sums(patient, part, layer_idx)?,
            Aim::Own => self.own_sums(patient, part, layer_idx)?,
        };
        let block = patient.student_block(layer_idx)?;
        let (_, n_inputs) = patient.read(part.writer(), Slot::Weight, Some(layer_idx))?.size2()?;
        let mut joint = Joint::new(part, layer_idx, n_inputs, patient.blueprint().size(HIDDEN) as i64)?;
        for ((x_bte, rope), wanted_bte) in self.student_bte.iter().zip(&self.ropes).zip(&wanted_bte) {
            joint.add(&block, x_bte, rope.as_ref(), wanted_bte)?;
        }
        Ok(joint)
    }

    /// Moves the student past one half of a layer.
    fn step(&mut self, patient: &Patient, part: Part, layer_idx: usize) -> Result<()> {
        let block = patient.student_block(layer_idx)?;
        for (x_bte, rope) in self.student_bte.iter_mut().zip(&self.ropes) {
            *x_bte = part.forward(&block, x_bte, rope.as_ref())?;
        }
        Ok(())
    }

    fn own_sums(&self, patient: &Patient, part: Part, layer_idx: usize) -> Result<Vec<Tensor>> {
        let whole = patient.wide_block(layer_idx)?;
        let streams = self.student_bte.iter().zip(&self.ropes);
        streams.map(|(x_bte, rope)| part.sum(&whole, x_bte, rope.as_ref(), &mut NoTap)).collect()
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
        sums.iter().map(|sum_bte| kept_channels(patient, sum_bte)).collect()
    }

    fn run_teacher(&mut self, patient: &Patient, source_layer: usize) -> Result<Vec<Tensor>> {
        self.run_teacher_half(patient, Part::Attention, source_layer)?;
        self.run_teacher_half(patient, Part::Mlp, source_layer)
    }

    /// Returns the sums before they settle: what the student's projections add up to, wherever the norms stand.
    fn run_teacher_half(&mut self, patient: &Patient, part: Part, source_layer: usize) -> Result<Vec<Tensor>> {
        let block: Block = patient.teacher_block(source_layer)?;
        let mut sums = Vec::with_capacity(self.teacher_bte.len());
        for (x_bte, rope) in self.teacher_bte.iter_mut().zip(&self.ropes) {
            let sum_bte = part.sum(&block, x_bte, rope.as_ref(), &mut NoTap)?;
            *x_bte = part.settle(&block, sum_bte.shallow_clone())?;
            sums.push(sum_bte);
        }
        Ok(sums)
    }
}

/// The teacher's activations at the residual channels that the student kept.
fn kept_channels(patient: &Patient, x_bte: &Tensor) -> Result<Tensor> {
    let kept: Vec<i64> = patient.kept(HIDDEN).iter().map(|&channel| channel as i64).collect();
    if kept.len() == patient.teacher_blueprint().size(HIDDEN) {
        return Ok(x_bte.shallow_clone());
    }
    Ok(x_bte.f_index_select(2, &Tensor::f_from_slice(&kept)?.f_to_device(x_bte.device())?)?)
}
