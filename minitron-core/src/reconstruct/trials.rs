//! Layers made smaller one at a time, and how far the whole model then is from what it was.
//!
//! ```text
//! text -> layers before, once -> the layer, as it is and at each smaller size -> layers after
//! ```

use std::collections::BTreeSet;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::editor::{ReconstructInputs, StudentEditor};
use super::store::TensorStore;
use super::stream_state::{Embedded, LayerInputs};
use crate::error::{Present, Result};
use crate::model::{Frame, MixerContext, NoTap, row_chunks};
use crate::plan::Plan;
use crate::spec::ModelSpec;

/// Passes that are timed, after one that is not.
const N_TIMED: usize = 5;

/// A model whose layers are tried one after the other.
pub struct LayerTrials<'a> {
    inputs: ReconstructInputs<'a>,
    /// Of the model as it is.
    whole: StudentEditor<'a>,
    frame: Frame,
    /// Last hidden states of all batches.
    last: TensorStore,
    entering: LayerInputs,
}

/// The text as it leaves the layer under trial, on its way to the end.
pub struct Trial(Embedded);

/// How far a model with a smaller layer is from the whole one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Mean KL from the whole one in nats per token; none of a model without logits.
    pub kl: Option<f64>,
    /// Σ ‖h − h'‖² / Σ ‖h‖² of last hidden states.
    pub error: f64,
}

impl<'a> LayerTrials<'a> {
    /// Before the first layer; takes one pass through all of them.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text; as reading a file does.
    pub fn start(inputs: ReconstructInputs<'a>) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let whole = StudentEditor::new(inputs, Plan::default())?;
        let streams = whole.embedded(whole.calibration()?, false)?;
        let any = BTreeSet::from([0]);
        let (source, spec) = (inputs.source, inputs.spec);
        let frame = Frame::open(source, spec, inputs.options, &any, true)?;
        let mut trials = LayerTrials {
            inputs,
            whole,
            frame,
            last: TensorStore::new(inputs.spill, "last")?,
            entering: LayerInputs { layer: 0, streams },
        };
        let mut ahead = trials.entering.streams.copied(inputs.spill, "ahead")?;
        for layer in 0..spec.n_layers() {
            ahead.pass_layer(&trials.whole.teacher_block(layer)?)?;
        }
        for batch in 0..ahead.states.len() {
            let last_bte = trials
                .frame
                .finish(ahead.states.before(0, batch)?.now_bte)?;
            trials.last.put(&batch.to_string(), &last_bte)?;
        }
        Ok(trials)
    }

    /// The model's description.
    pub fn spec(&self) -> &'a ModelSpec {
        self.inputs.spec
    }

    /// The layer whose turn it is.
    pub fn layer(&self) -> usize {
        self.entering.layer
    }

    /// A student that differs from the model in this layer alone: reconstructions look at nothing
    /// else.
    ///
    /// # Errors
    /// As [`StudentEditor::new`].
    pub fn editor(&self, plan: Plan) -> Result<StudentEditor<'_>> {
        let inputs = ReconstructInputs {
            only: Some(&self.entering),
            ..self.inputs
        };
        StudentEditor::new(inputs, plan)
    }

    /// The text as it leaves the layer of such a student; `place` tells trials of a layer apart.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn through(&self, editor: &StudentEditor, place: usize) -> Result<Trial> {
        let _no_grad = tch::no_grad_guard();
        let mut trial = self.without(place)?;
        trial.0.pass_layer(&editor.student_block(self.layer())?)?;
        Ok(trial)
    }

    /// The same where the layer is left out.
    ///
    /// # Errors
    /// `Io` where streams cannot be put away.
    pub fn without(&self, place: usize) -> Result<Trial> {
        let streams = self
            .entering
            .streams
            .copied(self.inputs.spill, &format!("trial-{place}"))?;
        Ok(Trial(streams))
    }

    /// Takes trials through the rest of the model, and compares their ends with its own.
    ///
    /// # Errors
    /// As reading a file and tensor operations do.
    pub fn judge(&self, mut trials: Vec<Trial>) -> Result<Vec<Distance>> {
        let _no_grad = tch::no_grad_guard();
        for layer in self.layer() + 1..self.inputs.spec.n_layers() {
            let block = self.whole.teacher_block(layer)?;
            for Trial(streams) in &mut trials {
                streams.pass_layer(&block)?;
            }
        }
        let text = self.whole.calibration()?;
        let mut sums = vec![Sums::default(); trials.len()];
        for round in 0..self.entering.streams.states.len() {
            let last_bte = self.last.read(&round.to_string())?;
            let last_bte = last_bte.f_to_device(self.inputs.options.device)?;
            let mut ends = Vec::with_capacity(trials.len());
            for Trial(streams) in &trials {
                ends.push(
                    self.frame
                        .finish(streams.states.before(0, round)?.now_bte)?,
                );
            }
            let of_batch = vec![self.compared(&last_bte, &ends)?];
            text.in_order(round, of_batch, &mut |_, given| {
                let given = given.first().present("what a batch gave")?;
                add(&mut sums, given)
            })?;
        }
        Ok(sums
            .iter()
            .map(|sums| sums.distance(self.frame.has_head()))
            .collect())
    }

    /// Goes to the next layer.
    ///
    /// # Errors
    /// As reading a file and tensor operations do.
    pub fn advance(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let layer = self.entering.layer;
        self.entering
            .streams
            .pass_layer(&self.whole.teacher_block(layer)?)?;
        self.entering.layer = layer + 1;
        Ok(())
    }

    /// For each end [B, T, E] beside the model's own: Σ KL, tokens, Σ ‖h − h'‖², Σ ‖h‖² [trials,
    /// 4]. Logits exist for some rows at a time.
    fn compared(&self, last_bte: &Tensor, ends: &[Tensor]) -> Result<Tensor> {
        let vocab = self.inputs.spec.options.vocab;
        let own_ne = rows(last_bte)?;
        let (n_rows, device) = (own_ne.size2()?.0, own_ne.device());
        let mut kl = vec![0.0; ends.len()];
        if self.frame.has_head() {
            for (start, len) in row_chunks(n_rows, vocab, device) {
                let of_rows = |x_ne: &Tensor| -> Result<Tensor> {
                    let logits_nv = self.frame.logits(&x_ne.f_narrow(0, start, len)?)?;
                    Ok(logits_nv.f_log_softmax(-1, Kind::Float)?)
                };
                let own_nv = of_rows(&own_ne)?;
                let p_nv = own_nv.f_exp()?;
                for (kl, end_bte) in kl.iter_mut().zip(ends) {
                    let less_nv = own_nv.f_sub(&of_rows(&rows(end_bte)?)?)?;
                    let sum = p_nv.f_mul(&less_nv)?.f_sum(Kind::Double)?;
                    *kl += sum.f_double_value(&[])?;
                }
            }
        }
        let own_ne = own_ne.f_to_kind(Kind::Double)?;
        let square = own_ne
            .f_square()?
            .f_sum(Kind::Double)?
            .f_double_value(&[])?;
        let mut all = Vec::with_capacity(4 * ends.len());
        for (kl, end_bte) in kl.into_iter().zip(ends) {
            let less_ne = own_ne.f_sub(&rows(end_bte)?.f_to_kind(Kind::Double)?)?;
            let error = less_ne
                .f_square()?
                .f_sum(Kind::Double)?
                .f_double_value(&[])?;
            all.extend([kl, n_rows as f64, error, square]);
        }
        Ok(Tensor::f_from_slice(&all)?.f_reshape([-1, 4])?)
    }
}

/// Milliseconds, the median of some passes.
impl LayerTrials<'_> {
    /// Of one part of the layer of a student, or of the model itself, over the first batch.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn time_part(&self, editor: Option<&StudentEditor>, part: usize) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let block = match editor {
            Some(editor) => editor.student_block(self.layer())?,
            None => self.whole.teacher_block(self.layer())?,
        };
        let (streams, context) = (&self.entering.streams, self.first_context()?);
        let state = streams.states.before(0, 0)?;
        self.median(&mut || {
            let sum_bte = block.added(part, state.stream(), context, &mut NoTap)?;
            block.settle(part, sum_bte)
        })
    }

    /// Of what stands behind the layers, over the first batch.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn time_rest(&self) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let last_ne = rows(&self.last.read("0")?)?;
        let last_ne = last_ne.f_to_device(self.inputs.options.device)?;
        let vocab = self.inputs.spec.options.vocab;
        let n_rows = last_ne.size2()?.0;
        self.median(&mut || {
            let mut last = self.frame.finish(last_ne.shallow_clone())?;
            if self.frame.has_head() {
                for (start, len) in row_chunks(n_rows, vocab, last_ne.device()) {
                    last = self.frame.logits(&last_ne.f_narrow(0, start, len)?)?;
                }
            }
            Ok(last)
        })
    }

    /// Sequences and tokens of the batch that is timed.
    ///
    /// # Errors
    /// As reading what waits in a folder does.
    pub fn timed_shape(&self) -> Result<(usize, usize)> {
        let (n_batch, n_tokens, _) = self.last.read("0")?.size3()?;
        Ok((n_batch as usize, n_tokens as usize))
    }

    fn first_context(&self) -> Result<&MixerContext> {
        let first = self.entering.streams.contexts.first();
        Ok(first.present("a batch of the calibration text")?)
    }

    fn median(&self, pass: &mut dyn FnMut() -> Result<Tensor>) -> Result<f64> {
        let device = self.inputs.options.device;
        let mut times = Vec::with_capacity(N_TIMED);
        for _ in 0..=N_TIMED {
            let begin = Instant::now();
            let done = pass()?;
            if device != Device::Cpu {
                // Waits for it.
                done.f_sum(Kind::Float)?.f_double_value(&[])?;
            }
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let mut times = times.split_off(1);
        times.sort_by(f64::total_cmp);
        times.get(N_TIMED / 2).copied().present("a time")
    }
}

/// Of one trial, over all batches.
#[derive(Debug, Clone, Copy, Default)]
struct Sums([f64; 4]);

impl Sums {
    fn distance(&self, has_head: bool) -> Distance {
        let [kl, n_tokens, error, square] = self.0;
        Distance {
            kl: has_head.then(|| kl / n_tokens.max(1.0)),
            error: error / square.max(f64::MIN_POSITIVE),
        }
    }
}

fn add(sums: &mut [Sums], given: &Tensor) -> Result<()> {
    let numbers = Vec::<f64>::try_from(given.f_reshape([-1])?)?;
    for (sums, numbers) in sums.iter_mut().zip(numbers.chunks(4)) {
        sums.0
            .iter_mut()
            .zip(numbers)
            .for_each(|(sum, number)| *sum += number);
    }
    Ok(())
}

fn rows(x_bte: &Tensor) -> Result<Tensor> {
    let width = x_bte.size().last().copied();
    Ok(x_bte.f_reshape([-1, width.present("channels")?])?)
}
