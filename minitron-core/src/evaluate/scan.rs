//! Every prediction over held-out windows, a chunk of rows at a time.

use tch::Tensor;

use super::Subject;
use crate::error::{Error, Result};
use crate::model::{NoTap, over_shared_ids, row_chunks};
use crate::windows::Task;

/// Some rows of predictions. N rows, V vocab.
#[derive(Debug)]
pub struct RowChunk {
    /// The model's logits [N, V].
    pub student_nv: Tensor,
    /// The teacher's, over its own vocabulary: [`RowChunk::compared`] has both over one.
    pub teacher_nv: Option<Tensor>,
    /// Right answers \[N\].
    pub labels_n: Tensor,
}

impl RowChunk {
    /// The model's logits and the teacher's over the token ids that both have, for whatever
    /// compares the two; none without a teacher. Where both tables have one size, as for most,
    /// these are the logits as they are.
    pub fn compared(&self) -> Result<Option<(Tensor, Tensor)>> {
        self.teacher_nv
            .as_ref()
            .map(|teacher_nv| over_shared_ids(&self.student_nv, teacher_nv))
            .transpose()
    }
}

/// Shows every prediction of the subject's windows once, in order: next tokens for causal models,
/// 15 % masked positions (fixed by the subject's seed) for encoders with a head.
///
/// # Errors
/// `Data` when the subject has no windows, or none in which something is predicted, or the model no
/// head.
pub fn scan_rows(subject: &Subject, mut see: impl FnMut(&RowChunk) -> Result<()>) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let model = subject.model;
    let windows = subject
        .windows
        .ok_or_else(|| Error::Data("no held-out text is given (--data)".into()))?;
    windows.check_fits(&model.spec.options)?;
    let task = Task::of(
        model.is_causal(),
        subject.tokenizer.and_then(|t| t.mask()),
        subject.seed,
    )?;
    subject
        .progress
        .start("eval, tokens", windows.n_tokens() as u64);
    let mut n_rows = 0;
    for range in windows.batches(subject.batch_size) {
        let chosen: Vec<usize> = range.collect();
        let batch = task.batch(windows, &chosen, model.device)?;
        let hidden_ne = batch.rows(&model.hidden(batch.input(), &mut NoTap, None)?)?;
        let teacher_ne = match subject.teacher {
            Some(teacher) => {
                Some(batch.rows(&teacher.hidden(batch.input(), &mut NoTap, None)?)?)
            }
            None => None,
        };
        n_rows += batch.n_rows();
        for (start, len) in row_chunks(batch.n_rows(), model.spec.options.vocab, model.device) {
            let teacher_nv = match (subject.teacher, &teacher_ne) {
                (Some(teacher), Some(rows)) => {
                    Some(teacher.logits(&rows.f_narrow(0, start, len)?)?)
                }
                _ => None,
            };
            see(&RowChunk {
                student_nv: model.logits(&hidden_ne.f_narrow(0, start, len)?)?,
                teacher_nv,
                labels_n: batch.labels_n.f_narrow(0, start, len)?,
            })?;
        }
        subject.progress.advance(batch.ids_bt.numel() as u64, "");
    }
    subject.progress.finish();
    match n_rows {
        0 => Err(Error::Data(
            "nothing in the held-out text is predicted; give text with answers, or no mask".into(),
        )),
        _ => Ok(()),
    }
}
