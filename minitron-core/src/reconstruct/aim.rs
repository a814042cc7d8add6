//! The teacher's way past the parts of its layers, and what it leaves for the student to be.

use super::ahead::Ahead;
use super::editor::StudentEditor;
use super::half::Half;
use super::kept::kept_channels;
use super::stream_state::Embedded;
use super::streams::{Reference, Streams};
use crate::error::{Present, Result};
use crate::model::{Block, NoTap};

impl Streams {
    /// Runs the teacher through the layers that this one stands for, where some were dropped behind
    /// it and what their parts add can be summed, or units were taken of them.
    pub(super) fn run_ahead(&mut self, editor: &StudentEditor, half: &Half) -> Result<()> {
        self.ahead = None;
        let layers = editor.stands_for(half.layer_idx);
        let (true, Some(teacher)) = (editor.inputs.only.is_none(), &mut self.teacher) else {
            return Ok(());
        };
        let is_merged = editor.has_taken(half.layer_idx);
        if layers.len() > 1 && (editor.adds_up(&layers) || is_merged) {
            self.ahead = Some(Ahead::run(editor, teacher, layers, is_merged)?);
        }
        Ok(())
    }

    /// Moves the teacher past this part of its layer; the student stays before it.
    pub(super) fn aim(&mut self, editor: &StudentEditor, half: &Half) -> Result<()> {
        match self.sweep.reference {
            Reference::Teacher => self.move_teacher(editor, half),
            Reference::Own => self.note_own_sums(editor, half),
        }
    }

    pub(super) fn teacher(&self) -> Result<&Embedded> {
        self.teacher.as_ref().present("a teacher to aim at")
    }

    fn note_own_sums(&mut self, editor: &StudentEditor, half: &Half) -> Result<()> {
        let whole = editor.wide_block(half.layer_idx)?;
        for (round, context) in self.student.contexts.iter().enumerate() {
            let state = self.student.states.before(half.number, round)?;
            let sum_bte = whole.added(half.number, state.stream(), context, &mut NoTap)?;
            self.wanted.put(&round.to_string(), &sum_bte)?;
        }
        Ok(())
    }

    /// Moves the teacher past one part of a layer, and past the layers that the student dropped
    /// after it; notes the last sums at the kept channels.
    fn move_teacher(&mut self, editor: &StudentEditor, half: &Half) -> Result<()> {
        if let Some(ahead) = &self.ahead {
            for round in 0..self.student.states.len() {
                let sum_bte = ahead.wanted(half.number, round)?;
                let kept_bte = kept_channels(editor, &sum_bte, 2)?;
                self.wanted.put(&round.to_string(), &kept_bte)?;
            }
            return Ok(());
        }
        let source_layer = editor.source_layer(half.layer_idx);
        let dropped = match half.is_last {
            true => source_layer + 1..editor.source_layer(half.layer_idx + 1),
            false => 0..0,
        };
        let block = editor.teacher_block(source_layer)?;
        self.run_teacher_part(editor, (&block, half.number), dropped.is_empty())?;
        drop(block);
        let last = dropped.clone().last();
        for dropped in dropped {
            self.run_teacher(editor, dropped, last == Some(dropped))?;
        }
        Ok(())
    }

    /// Moves it past a whole layer.
    pub(super) fn run_teacher(
        &mut self,
        editor: &StudentEditor,
        source_layer: usize,
        is_noted: bool,
    ) -> Result<()> {
        if self.teacher.is_none() {
            return Ok(());
        }
        let block = editor.teacher_block(source_layer)?;
        for part in 0..block.n_parts() {
            let is_last = part + 1 == block.n_parts();
            self.run_teacher_part(editor, (&block, part), is_noted && is_last)?;
        }
        Ok(())
    }

    /// The sums are noted before they settle: what the student's projections add up to, wherever
    /// the norms stand.
    fn run_teacher_part(
        &mut self,
        editor: &StudentEditor,
        (block, part): (&Block, usize),
        is_noted: bool,
    ) -> Result<()> {
        let wanted = &mut self.wanted;
        let teacher = self.teacher.as_mut().present("a teacher to aim at")?;
        teacher.pass(block, part, &mut |round, sum_bte| match is_noted {
            true => wanted.put(&round.to_string(), &kept_channels(editor, sum_bte, 2)?),
            false => Ok(()),
        })
    }
}
