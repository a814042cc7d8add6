//! The calibration text as student or teacher embed it, on its way through their layers.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::editor::StudentEditor;
use super::stream_state::{Embedded, StreamStore};
use crate::calibrate::Calibration;
use crate::error::Result;
use crate::model::{Frame, Input};
use crate::windows::Task;

impl StudentEditor<'_> {
    /// What stands around the layers, with the rows of some tokens alone.
    pub(super) fn frame(
        &self,
        of_student: bool,
        tokens: &BTreeSet<u32>,
        has_head: bool,
    ) -> Result<Frame> {
        let options = self.load_options();
        match of_student {
            true => Frame::open(&self.student()?, self.spec(), options, tokens, has_head),
            false => {
                let spec = self.teacher_spec();
                Frame::open(self.teacher(), spec, options, tokens, has_head)
            }
        }
    }

    /// Token ids of this process's batches of a text, as its task has them, embedded by student or
    /// teacher.
    pub(super) fn embedded(&self, text: Calibration, of_student: bool) -> Result<Embedded> {
        let windows = text.windows;
        let task = text.task.unwrap_or(Task::States);
        let mut tokens = BTreeSet::new();
        for window in 0..windows.len() {
            tokens.extend(windows.window(window)?.iter().copied());
        }
        if let Task::Masked { mask, .. } = task {
            tokens.insert(mask);
        }
        let frame = self.frame(of_student, &tokens, false)?;
        let name = match of_student {
            true => "student",
            false => "teacher",
        };
        let parts = self.teacher_spec().layers.iter();
        let mut parts = parts.flat_map(|layer| &layer.0);
        let keeps_entered = parts.any(|part| part.reads_layer_input);
        let mut embedded = Embedded {
            states: StreamStore::new(self.inputs.spill, name, keeps_entered)?,
            contexts: Vec::new(),
        };
        for chosen in text.own_batches() {
            let device = self.load_options().device;
            let batch = task.batch(windows, &chosen.collect::<Vec<_>>(), device)?;
            let (ids_bt, positions_bt) = (&batch.ids_bt, batch.positions_bt.as_ref());
            // Windows of a batch have one length.
            let input = Input {
                ids_bt,
                attention_mask_bt: None,
                positions_bt,
            };
            embedded.states.push(frame.embed(input, 0)?)?;
            let n_tokens = ids_bt.size2()?.1;
            let alike = embedded.contexts.last();
            let alike = alike.filter(|last| positions_bt.is_none() && last.n_tokens == n_tokens);
            let context = match alike {
                Some(last) => last.clone(),
                None => Rc::new(frame.context(0, n_tokens, None, positions_bt)?),
            };
            embedded.contexts.push(context);
        }
        Ok(embedded)
    }
}
