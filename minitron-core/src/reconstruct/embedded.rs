//! The calibration text as student or teacher embed it, on its way through their layers.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::editor::StudentEditor;
use super::stream_state::{Embedded, StreamStore};
use crate::error::Result;
use crate::model::{Frame, Input};

impl StudentEditor<'_> {
    pub(super) fn frame(&self, of_student: bool, tokens: &BTreeSet<u32>) -> Result<Frame> {
        let options = self.load_options();
        match of_student {
            true => Frame::open(&self.student()?, self.spec(), options, tokens, false),
            false => Frame::open(self.teacher(), self.teacher_spec(), options, tokens, false),
        }
    }

    /// Token ids of this process's batches of the calibration text, embedded by student or
    /// teacher.
    pub(super) fn embedded(&self, of_student: bool) -> Result<Embedded> {
        let calibration = self.calibration()?;
        let windows = calibration.windows;
        let mut tokens = BTreeSet::new();
        for window in 0..windows.len() {
            tokens.extend(windows.window(window)?.iter().copied());
        }
        let frame = self.frame(of_student, &tokens)?;
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
        for batch in calibration.own_batches() {
            let device = self.load_options().device;
            let ids_bt = windows.batch(batch.clone(), device)?;
            let positions_bt = windows.positions(batch, device)?;
            let positions_bt = positions_bt.as_ref();
            let input = Input {
                ids_bt: &ids_bt,
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
