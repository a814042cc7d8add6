//! The teacher's streams in a layer that the student kept and in those that it dropped behind it.

use std::collections::BTreeSet;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::total;
use super::store::TensorStore;
use super::stream_state::{Embedded, StreamState};
use crate::error::{Error, Present, Result};
use crate::spec::{At, Sublayer};

/// The teacher has run through a kept layer and the dropped ones behind it; where it stood before
/// each of their parts is remembered, and what each part of the student's layer stands for follows:
/// what the same parts of all of them add.
///
/// ```text
/// wanted after part p  =  x(first layer, 0) + Σ over layers l of  x(l, p + 1) − x(l, 0)
/// ```
/// with x(l, p) the teacher's stream before part p of layer l. After the last part that is the
/// stream after the last layer. Parts but the last are aimed at their own layer's sums instead
/// where sums are normed before the next part reads them, and of layers that took no units where it
/// would change by more than a quarter what a part of the kept layer reads.
pub(super) struct Ahead {
    layers: Range<usize>,
    n_parts: usize,
    /// Streams before parts.
    before: TensorStore,
    /// Sums that are normed before the next part, by the layer and the part that adds.
    unsettled: BTreeSet<(usize, usize)>,
    device: Device,
    /// Whether parts are aimed at what all these layers add, rather than at their own layer's sums
    /// but for the last.
    sums: bool,
}

/// The share of what a part of the kept layer reads that earlier parts of dropped layers may change
/// before it, where nothing was merged. Beyond it the layer would no longer compute what it does: a
/// first MLP, behind an attention that adds little to it and before one that adds much.
const CHANGED: f64 = 0.25;

impl Ahead {
    /// Moves the teacher past all of these layers; of `is_merged` ones what their parts add is
    /// summed wherever it can be.
    ///
    /// # Errors
    /// As running it does.
    pub fn run(
        editor: &StudentEditor,
        teacher: &mut Embedded,
        layers: Range<usize>,
        is_merged: bool,
    ) -> Result<Self> {
        let mut ahead = Ahead {
            n_parts: editor.teacher_spec().places(layers.start).count(),
            before: TensorStore::new(editor.inputs.spill, "ahead")?,
            unsettled: BTreeSet::new(),
            device: editor.load_options().device,
            sums: false,
            layers: layers.clone(),
        };
        for layer in layers.clone() {
            ahead.pass(editor, teacher, layer)?;
        }
        ahead.note(teacher, (layers.end, 0))?;
        ahead.sums = ahead.unsettled.is_empty()
            && (is_merged || ahead.changes_little(editor, teacher.states.len())?);
        Ok(ahead)
    }

    fn pass(&mut self, editor: &StudentEditor, teacher: &mut Embedded, layer: usize) -> Result<()> {
        let block = editor.teacher_block(layer)?;
        for (part, (_, sublayer)) in editor.teacher_spec().places(layer).enumerate() {
            self.note(teacher, (layer, part))?;
            let is_last = layer + 1 == self.layers.end && part + 1 == self.n_parts;
            let is_wanted = is_last || layer == self.layers.start && part + 1 < self.n_parts;
            if sublayer.after_sum.is_some() {
                self.unsettled.insert((layer, part));
            }
            let is_kept = is_wanted && sublayer.after_sum.is_some();
            let before = &mut self.before;
            teacher.pass(&block, part, &mut |round, sum_bte| match is_kept {
                true => before.put(&sum_key(layer, part, round), sum_bte),
                false => Ok(()),
            })?;
        }
        Ok(())
    }

    fn note(&mut self, teacher: &Embedded, (layer, part): (usize, usize)) -> Result<()> {
        for round in 0..teacher.states.len() {
            let state = teacher.states.before(part, round)?;
            self.before.put(&key(layer, part, round), &state.now_bte)?;
        }
        Ok(())
    }

    /// Whether a part may take units of the same parts of dropped layers: where sums are normed,
    /// the last one may.
    pub fn takes(&self, part: usize) -> bool {
        self.sums || part + 1 == self.n_parts && !self.unsettled.is_empty()
    }

    /// Whether what a part of the kept layer reads is another stream than its own.
    pub fn moves(&self, part: usize) -> bool {
        self.sums && part > 0
    }

    fn changes_little(&self, editor: &StudentEditor, n_rounds: usize) -> Result<bool> {
        let text = editor.calibration()?;
        let own = editor.teacher_block(self.layers.start)?;
        let mut sums = true;
        for part in 1..self.n_parts {
            let (mut changed, mut size) = (0.0, 0.0);
            for round in 0..n_rounds {
                let state = self.state(self.layers.start, part, round)?;
                let reads_bte = own.input(part, state.stream())?.f_to_kind(Kind::Float)?;
                let aimed = self.at(part, self.summed(part - 1, round)?, round)?;
                let aimed_bte = own.input(part, aimed.stream())?;
                let apart_bte = aimed_bte.f_to_kind(Kind::Float)?.f_sub(&reads_bte)?;
                let squares = [
                    total(&apart_bte.f_square()?)?,
                    total(&reads_bte.f_square()?)?,
                ];
                let of_batch = vec![Tensor::f_from_slice(&squares)?];
                text.in_order(round, of_batch, &mut |_, given| {
                    let squares = given.first().present("a batch with its squares")?;
                    changed += squares.f_double_value(&[0])?;
                    size += squares.f_double_value(&[1])?;
                    Ok(())
                })?;
            }
            sums &= changed <= CHANGED * size;
        }
        Ok(sums)
    }

    // --- what the teacher's stream was

    /// The teacher's state before a part of one of the layers.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn state(&self, layer: usize, part: usize, round: usize) -> Result<StreamState> {
        let mut state = StreamState::new(self.read(layer, 0, round)?);
        if part > 0 {
            state.now_bte = self.read(layer, part, round)?;
        }
        Ok(state)
    }

    fn read(&self, layer: usize, part: usize, round: usize) -> Result<Tensor> {
        let x_bte = self.before.read(&key(layer, part, round))?;
        Ok(x_bte.f_to_device(self.device)?)
    }

    /// Its sum after a part of one of the layers, before it is normed.
    fn sum_after(&self, layer: usize, part: usize, round: usize) -> Result<Tensor> {
        if self.unsettled.contains(&(layer, part)) {
            let sum_bte = self.before.read(&sum_key(layer, part, round))?;
            return Ok(sum_bte.f_to_device(self.device)?);
        }
        match part + 1 == self.n_parts {
            true => self.read(layer + 1, 0, round),
            false => self.read(layer, part + 1, round),
        }
    }

    // --- what the student's should be

    /// The sum after a part of the student's layer, over all the teacher's channels.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn wanted(&self, part: usize, round: usize) -> Result<Tensor> {
        match (part + 1 == self.n_parts, self.sums) {
            (true, _) => self.sum_after(self.layers.end - 1, part, round),
            (false, true) => self.summed(part, round),
            (false, false) => self.sum_after(self.layers.start, part, round),
        }
    }

    /// The same once it has been normed, where the family does so.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn settled(&self, part: usize, round: usize) -> Result<Tensor> {
        match part + 1 == self.n_parts {
            true => self.read(self.layers.end, 0, round),
            false => self.read(self.layers.start, part + 1, round),
        }
    }

    fn summed(&self, part: usize, round: usize) -> Result<Tensor> {
        let mut sum_bte = self.sum_after(self.layers.start, part, round)?;
        for layer in self.layers.clone().skip(1) {
            let after_bte = self.sum_after(layer, part, round)?;
            let added_bte = after_bte.f_sub(&self.read(layer, 0, round)?)?;
            sum_bte = sum_bte.f_add(&added_bte)?;
        }
        Ok(sum_bte)
    }

    /// The state before a part of the student's layer where its stream is as it should be.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn aimed(&self, part: usize, round: usize) -> Result<StreamState> {
        match self.moves(part) {
            true => self.at(part, self.summed(part - 1, round)?, round),
            false => self.state(self.layers.start, part, round),
        }
    }

    /// The state before a part of the student's layer whose stream is this.
    fn at(&self, part: usize, now_bte: Tensor, round: usize) -> Result<StreamState> {
        let mut state = self.state(self.layers.start, part, round)?;
        state.now_bte = now_bte;
        Ok(state)
    }
}

fn key(layer: usize, part: usize, round: usize) -> String {
    format!("{layer}-{part}-{round}")
}

fn sum_key(layer: usize, part: usize, round: usize) -> String {
    format!("{layer}-{part}-{round}-sum")
}

impl StudentEditor<'_> {
    /// The teacher's layers that a layer of the student stands for: its own, and those dropped
    /// behind it.
    pub fn stands_for(&self, layer_idx: usize) -> Range<usize> {
        self.source_layer(layer_idx)..self.source_layer(layer_idx + 1)
    }

    /// Whether the parts of these layers of the teacher are alike in number and kind.
    pub(super) fn are_alike(&self, layers: &Range<usize>) -> bool {
        let spec = self.teacher_spec();
        let names = |layer| -> Vec<&str> {
            let parts = spec.places(layer);
            parts.map(|(_, part)| part.mixer.name()).collect()
        };
        let first = names(layers.start);
        layers.clone().all(|layer| names(layer) == first)
    }

    /// Whether what the same parts of these layers add can be summed: none is normed after its sum.
    pub(super) fn adds_up(&self, layers: &Range<usize>) -> bool {
        let spec = self.teacher_spec();
        let mut parts = layers.clone().flat_map(|layer| spec.places(layer));
        self.are_alike(layers) && parts.all(|(_, part)| part.after_sum.is_none())
    }

    /// The part of a layer of the teacher that stands where one of the student's stands in its own.
    pub(super) fn same_part(&self, at: At, source_layer: usize) -> Result<&Sublayer> {
        let mut places = self.teacher_spec().places(source_layer);
        let found = places.find(|(place, _)| *place == at.in_layer(source_layer));
        found.map(|(_, part)| part).ok_or_else(|| {
            Error::Internal(format!("layer {source_layer} of the teacher has no {at}"))
        })
    }
}
