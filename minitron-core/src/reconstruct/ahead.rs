//! The teacher's streams in a layer that the student kept and in those that it dropped behind it.

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
/// stream after the last layer. The parts of a layer are alone with their stream: none is normed
/// after its sum. Where that would change by more than a quarter what a part of the kept layer
/// reads, parts but the last are aimed at their own layer's stream, x(first layer, p + 1).
pub(super) struct Ahead {
    layers: Range<usize>,
    n_parts: usize,
    before: TensorStore,
    device: Device,
    /// Whether parts are aimed at what all these layers add, rather than at their own layer's
    /// stream but for the last.
    sums: bool,
}

/// The share of what a part of the kept layer reads that earlier parts of dropped layers may change
/// before it. Beyond it the layer would no longer compute what it does: a first MLP, behind an
/// attention that adds little to it and before one that adds much.
const CHANGED: f64 = 0.25;

impl Ahead {
    /// Moves the teacher past all of these layers.
    ///
    /// # Errors
    /// As running it does.
    pub fn run(
        editor: &StudentEditor,
        teacher: &mut Embedded,
        layers: Range<usize>,
    ) -> Result<Self> {
        let n_parts = editor.teacher_spec().places(layers.start).count();
        let mut before = TensorStore::new(editor.inputs.spill, "ahead")?;
        for layer in layers.clone() {
            let block = editor.teacher_block(layer)?;
            for part in 0..n_parts {
                for round in 0..teacher.states.len() {
                    let state = teacher.states.before(part, round)?;
                    before.put(&key(layer, part, round), &state.now_bte)?;
                }
                teacher.pass(&block, part, &mut |_, _| Ok(()))?;
            }
        }
        for round in 0..teacher.states.len() {
            let state = teacher.states.before(0, round)?;
            before.put(&key(layers.end, 0, round), &state.now_bte)?;
        }
        let mut ahead = Ahead {
            layers,
            n_parts,
            before,
            device: editor.load_options().device,
            sums: true,
        };
        ahead.sums = ahead.changes_little(editor, teacher.states.len())?;
        Ok(ahead)
    }

    /// Whether the parts of all these layers can be summed.
    pub fn sums(&self) -> bool {
        self.sums
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
                let aimed_bte = own.input(part, self.aimed(part, round)?.stream())?;
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

    /// What the student's stream should be after a part of its layer, over all the teacher's
    /// channels.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn wanted(&self, part: usize, round: usize) -> Result<Tensor> {
        if part + 1 == self.n_parts {
            return self.read(self.layers.end, 0, round);
        }
        let mut sum_bte = self.read(self.layers.start, part + 1, round)?;
        if !self.sums {
            return Ok(sum_bte);
        }
        for layer in self.layers.clone().skip(1) {
            let after_bte = self.read(layer, part + 1, round)?;
            let added_bte = after_bte.f_sub(&self.read(layer, 0, round)?)?;
            sum_bte = sum_bte.f_add(&added_bte)?;
        }
        Ok(sum_bte)
    }
}

impl Ahead {
    /// The state before a part of the student's layer where its stream is as it should be.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn aimed(&self, part: usize, round: usize) -> Result<StreamState> {
        let mut state = StreamState::new(self.read(self.layers.start, 0, round)?);
        if part > 0 {
            state.now_bte = self.wanted(part - 1, round)?;
        }
        Ok(state)
    }
}

fn key(layer: usize, part: usize, round: usize) -> String {
    format!("{layer}-{part}-{round}")
}

impl StudentEditor<'_> {
    /// The teacher's layers that a layer of the student stands for: its own, and those dropped
    /// behind it.
    pub fn stands_for(&self, layer_idx: usize) -> Range<usize> {
        self.source_layer(layer_idx)..self.source_layer(layer_idx + 1)
    }

    /// Whether the parts of these layers of the teacher are alike in number and kind, and add to
    /// one stream, so that what the same parts add can be summed.
    pub(super) fn adds_up(&self, layers: &Range<usize>) -> bool {
        let spec = self.teacher_spec();
        let of = |layer| spec.places(layer).map(|(_, part)| part);
        let names = |layer| -> Vec<&str> { of(layer).map(|part| part.mixer.name()).collect() };
        let first = names(layers.start);
        layers.clone().all(|layer| {
            names(layer) == first && of(layer).all(|part: &Sublayer| part.after_sum.is_none())
        })
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
