//! How far a student is from its teacher on text that nothing was fitted to.

use std::collections::BTreeSet;

use tch::{Kind, Reduction, Tensor};
use tracing::debug_span;

use super::editor::StudentEditor;
use super::kept::kept_channels;
use super::projections::total;
use super::stream_state::Embedded;
use crate::calibrate::Calibration;
use crate::error::{Error, Present, Result};
use crate::model::{Frame, row_chunks};
use crate::windows::{Batch, Task};

/// Means over held-out text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldOutMeans {
    /// Of models with logits, over predictions, in nats.
    Logits {
        /// Predictions.
        n_tokens: usize,
        /// Negative log-likelihood of the right tokens, by the teacher.
        teacher_loss: f64,
        /// The same by the student.
        loss: f64,
        /// KL(teacher ‖ student).
        kl: f64,
    },
    /// Of others, over tokens.
    States {
        /// Tokens.
        n_tokens: usize,
        /// Cosine of last hidden states, at the channels that the student kept.
        cosine: f64,
    },
}

impl StudentEditor<'_> {
    /// How far the student, as reconstructed so far, is from its teacher on a text: what
    /// evaluations of both over the same batches give, one layer in memory at a time.
    ///
    /// # Errors
    /// `Data` where the text's task predicts nothing; as reading a file does.
    pub fn held_out(&self, text: Calibration) -> Result<HeldOutMeans> {
        let _no_grad = tch::no_grad_guard();
        let n_layers = self.n_layers() + self.teacher_spec().n_layers();
        text.progress
            .start("held-out text, layers", n_layers as u64);
        let teacher = self.passed(text, false)?;
        let student = self.passed(text, true)?;
        text.progress.finish();
        let any = BTreeSet::from([0]);
        let ends = Ends {
            editor: self,
            teacher: (self.frame(false, &any, true)?, teacher),
            student: (self.frame(true, &any, true)?, student),
        };
        let device = self.load_options().device;
        let mut sums = [0.0; N_SUMS];
        for (round, chosen) in text.own_batches().into_iter().enumerate() {
            let task = text.task.unwrap_or(Task::States);
            let batch = task.batch(text.windows, &chosen.collect::<Vec<_>>(), device)?;
            let of_batch = Tensor::f_from_slice(&ends.sums(round, &batch)?)?;
            text.in_order(round, vec![of_batch], &mut |_, given| {
                let given = given.first().present("what a batch gave")?;
                add(&mut sums, Vec::<f64>::try_from(given)?);
                Ok(())
            })?;
        }
        ends.means(sums)
    }

    /// The text behind all layers.
    pub(super) fn passed(&self, text: Calibration, of_student: bool) -> Result<Embedded> {
        let mut streams = self.embedded(text, of_student)?;
        let n_layers = match of_student {
            true => self.n_layers(),
            false => self.teacher_spec().n_layers(),
        };
        for layer_idx in 0..n_layers {
            let _span = debug_span!("layer", layer_idx, of_student).entered();
            let block = match of_student {
                true => self.student_block(layer_idx)?,
                false => self.teacher_block(layer_idx)?,
            };
            streams.pass_layer(&block)?;
            text.progress.advance(1, "");
        }
        Ok(streams)
    }
}

/// Predictions, and Σ of the teacher's loss, the student's and KL; or tokens, and Σ cosine.
const N_SUMS: usize = 4;

fn add(sums: &mut [f64; N_SUMS], given: impl IntoIterator<Item = f64>) {
    sums.iter_mut().zip(given).for_each(|(sum, it)| *sum += it);
}

/// Both models behind their last layers.
struct Ends<'e, 'a> {
    editor: &'e StudentEditor<'a>,
    teacher: (Frame, Embedded),
    student: (Frame, Embedded),
}

impl Ends<'_, '_> {
    fn have_logits(&self) -> bool {
        self.teacher.0.has_head() && self.student.0.has_head()
    }

    /// Of a batch, as [`N_SUMS`] says.
    fn sums(&self, round: usize, batch: &Batch) -> Result<[f64; N_SUMS]> {
        let last = |(frame, streams): &(Frame, Embedded)| -> Result<Tensor> {
            frame.finish(streams.states.before(0, round)?.now_bte)
        };
        let (teacher_bte, student_bte) = (last(&self.teacher)?, last(&self.student)?);
        match self.have_logits() {
            true => self.of_logits(
                &batch.rows(&teacher_bte)?,
                &batch.rows(&student_bte)?,
                batch,
            ),
            false => self.of_states(&teacher_bte, &student_bte),
        }
    }

    /// Logits exist for some rows at a time.
    fn of_logits(
        &self,
        teacher_ne: &Tensor,
        student_ne: &Tensor,
        batch: &Batch,
    ) -> Result<[f64; N_SUMS]> {
        let vocab = self.editor.teacher_spec().options.vocab;
        let mut sums = [0.0; N_SUMS];
        for (start, len) in row_chunks(batch.n_rows(), vocab, teacher_ne.device()) {
            let of_rows = |frame: &Frame, x_ne: &Tensor| -> Result<Tensor> {
                let logits_nv = frame.logits(&x_ne.f_narrow(0, start, len)?)?;
                Ok(logits_nv.f_log_softmax(-1, Kind::Float)?)
            };
            let teacher_nv = of_rows(&self.teacher.0, teacher_ne)?;
            let student_nv = of_rows(&self.student.0, student_ne)?;
            let labels_n = batch.labels_n.f_narrow(0, start, len)?;
            let loss = |x_nv: &Tensor| {
                total(&x_nv.f_nll_loss::<Tensor>(&labels_n, None, Reduction::None, -100)?)
            };
            let less_nv = teacher_nv.f_sub(&student_nv)?;
            let of_chunk = [
                len as f64,
                loss(&teacher_nv)?,
                loss(&student_nv)?,
                total(&teacher_nv.f_exp()?.f_mul(&less_nv)?)?,
            ];
            add(&mut sums, of_chunk);
        }
        Ok(sums)
    }

    fn of_states(&self, teacher_bte: &Tensor, student_bte: &Tensor) -> Result<[f64; N_SUMS]> {
        let widened = |x: &Tensor| x.f_to_kind(Kind::Float);
        let teacher_bte = widened(&kept_channels(self.editor, teacher_bte, 2)?)?;
        let student_bte = widened(student_bte)?;
        let cosine_bt = Tensor::f_cosine_similarity(&student_bte, &teacher_bte, -1, 1e-12)?;
        Ok([cosine_bt.numel() as f64, total(&cosine_bt)?, 0.0, 0.0])
    }

    fn means(&self, sums: [f64; N_SUMS]) -> Result<HeldOutMeans> {
        let n_tokens = sums[0] as usize;
        if n_tokens == 0 {
            return Err(Error::Data(
                "nothing in the held-out text is predicted; give text with answers, or no mask"
                    .into(),
            ));
        }
        let [_, first, second, third] = sums.map(|sum| sum / n_tokens as f64);
        Ok(match self.have_logits() {
            true => HeldOutMeans::Logits {
                n_tokens,
                teacher_loss: first,
                loss: second,
                kl: third,
            },
            false => HeldOutMeans::States {
                n_tokens,
                cosine: first,
            },
        })
    }
}
