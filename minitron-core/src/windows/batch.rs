//! What a batch asks of a language model: its inputs, the rows that predict, and the right answers.

use tch::{Device, Kind, Tensor};

use super::padding::{fill, onto};
use super::token::Marks;
use super::window::{Sample, Windows, positions_in_documents};
use crate::error::{Error, Result};
use crate::model::Input;
use crate::random::SplitMix;
use crate::spec::Options;

/// Share of an encoder's positions that are masked.
const MASKED_SHARE: f64 = 0.15;

/// Which task windows stand for. B batch, T tokens, E embed, N rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Position t predicts token t + 1: T − 1 rows per window.
    NextToken,
    /// 15 % of the positions between the special tokens are replaced by this token and predicted.
    Masked {
        /// The model's mask token.
        mask: u32,
        /// Which positions: a function of this and the window's number alone, the same in every
        /// epoch.
        seed: u64,
    },
    /// Nothing is predicted: the text is there to be compared in its states.
    States,
}

/// One batch.
#[derive(Debug)]
pub struct Batch {
    /// Inputs [B, T].
    pub ids_bt: Tensor,
    /// Answers \[N\]; of no rows where nothing is predicted.
    pub labels_n: Tensor,
    /// Whether a position holds a token rather than padding [B, T]; none where all do.
    pub attention_mask_bt: Option<Tensor>,
    /// Each token's position in its document [B, T], where attention stays inside documents and
    /// windows hold several.
    pub positions_bt: Option<Tensor>,
    rows: Option<Tensor>,
    /// Whether a position predicts what counts [B, T]; none where all do.
    counted_bt: Option<Tensor>,
    n_compared: i64,
}

/// One window of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowRows {
    /// Its tokens as the model sees them, without padding.
    pub tokens: Vec<i64>,
    /// The positions that predict, ascending.
    pub positions: Vec<i64>,
    /// Where documents begin after the first, where attention stays inside them.
    pub documents: Vec<i64>,
}

impl Task {
    /// The batch of some windows.
    pub fn batch(self, windows: &Windows, chosen: &[usize], device: Device) -> Result<Batch> {
        let samples = chosen
            .iter()
            .map(|&window| windows.sample(window, window as u64))
            .collect::<Result<Vec<_>>>()?;
        self.batch_of(&samples, windows.n_special_tokens(), device)
    }

    /// The batch of some samples, each with as many special tokens.
    pub fn batch_of(
        self,
        samples: &[Sample],
        n_special_tokens: usize,
        device: Device,
    ) -> Result<Batch> {
        let sequences: Vec<&[u32]> = samples
            .iter()
            .map(|sample| sample.tokens.as_slice())
            .collect();
        let (ids_bt, attention_mask_bt) = fill(&sequences, device)?;
        let marks: Vec<&[Marks]> = samples
            .iter()
            .map(|sample| sample.marks.as_slice())
            .collect();
        let positions_bt = positions_in_documents(&marks, device)?;
        let is_plain = attention_mask_bt.is_none() && marks.iter().all(|marks| marks.is_empty());
        let asked = match self {
            Task::NextToken if is_plain => Asked::all_next_tokens(ids_bt)?,
            Task::NextToken => Asked::next_tokens(ids_bt, samples)?,
            Task::Masked { mask, seed } => {
                let rows = masked_rows(samples, n_special_tokens, seed);
                Asked::masked_tokens(ids_bt, &rows, mask)?
            }
            Task::States => Asked::nothing(ids_bt)?,
        };
        // Known here, so that nobody asks the device.
        let n_compared = match (&asked.counted_bt, &asked.rows) {
            (Some(_), Some(rows)) => rows.numel() as i64,
            _ => samples
                .iter()
                .map(|sample| sample.tokens.len() as i64)
                .sum(),
        };
        Ok(Batch {
            n_compared,
            ids_bt: asked.ids_bt,
            labels_n: asked.labels_n,
            attention_mask_bt,
            positions_bt,
            rows: asked.rows,
            counted_bt: asked.counted_bt,
        })
    }
}

/// What a task makes of token ids; the fields are those of [`Batch`].
struct Asked {
    ids_bt: Tensor,
    labels_n: Tensor,
    rows: Option<Tensor>,
    counted_bt: Option<Tensor>,
}

impl Asked {
    fn all_next_tokens(ids_bt: Tensor) -> Result<Self> {
        let n_next = ids_bt.size2()?.1 - 1;
        let labels_n = ids_bt.f_narrow(1, 1, n_next)?.f_reshape([-1i64])?;
        Ok(Asked {
            ids_bt,
            labels_n,
            rows: None,
            counted_bt: None,
        })
    }

    /// Those that follow in the same document and count.
    fn next_tokens(ids_bt: Tensor, samples: &[Sample]) -> Result<Self> {
        let width = ids_bt.size2()?.1 as usize;
        let rows = predicting_rows(samples, width);
        let rows = onto(&rows, ids_bt.device())?;
        let mut marks = samples.iter().flat_map(|sample| &sample.marks);
        let counted_bt = if marks.any(|mark| !mark.counts()) {
            Some(at_rows(&rows, &ids_bt)?)
        } else {
            None
        };
        let nexts = rows.f_add_scalar(1)?;
        let labels_n = ids_bt.f_reshape([-1i64])?.f_index_select(0, &nexts)?;
        Ok(Asked {
            ids_bt,
            labels_n,
            rows: Some(rows),
            counted_bt,
        })
    }

    /// The tokens at these rows, in whose place `mask` stands.
    fn masked_tokens(ids_bt: Tensor, rows: &[i64], mask: u32) -> Result<Self> {
        let rows = onto(rows, ids_bt.device())?;
        let flat = ids_bt.f_reshape([-1i64])?;
        let labels_n = flat.f_index_select(0, &rows)?;
        let masked = flat.f_index_fill(0, &rows, i64::from(mask))?;
        Ok(Asked {
            ids_bt: masked.f_view_as(&ids_bt)?,
            labels_n,
            rows: Some(rows),
            counted_bt: None,
        })
    }

    fn nothing(ids_bt: Tensor) -> Result<Self> {
        let none = Tensor::f_zeros([0], (Kind::Int64, ids_bt.device()))?;
        Ok(Asked {
            ids_bt,
            labels_n: none.shallow_clone(),
            rows: Some(none),
            counted_bt: None,
        })
    }
}

/// True at rows of the flattened batch [B, T].
fn at_rows(rows: &Tensor, ids_bt: &Tensor) -> Result<Tensor> {
    let none = Tensor::f_zeros([ids_bt.numel() as i64], (Kind::Bool, ids_bt.device()))?;
    Ok(none.f_index_fill(0, rows, 1)?.f_view_as(ids_bt)?)
}

/// Places in the flattened batch whose next token is predicted and counts. What begins a document,
/// where attention stays inside documents, is predicted by none.
fn predicting_rows(samples: &[Sample], width: usize) -> Vec<i64> {
    let mut rows = Vec::new();
    for (row, sample) in samples.iter().enumerate() {
        for next in 1..sample.tokens.len() {
            // Absent where all tokens count.
            let mark = sample.marks.get(next).copied().unwrap_or_default();
            if mark.counts() && !mark.begins_document() {
                rows.push((row * width + next - 1) as i64);
            }
        }
    }
    rows
}

/// Positions in the flattened batch; at least one per window.
fn masked_rows(samples: &[Sample], n_special_tokens: usize, seed: u64) -> Vec<i64> {
    let width = samples
        .iter()
        .map(|sample| sample.tokens.len())
        .max()
        .unwrap_or(0);
    let first = n_special_tokens / 2;
    let mut rows = Vec::new();
    for (row, sample) in samples.iter().enumerate() {
        let n_inner = sample.tokens.len().saturating_sub(n_special_tokens);
        let mut random = SplitMix::new(seed ^ sample.id.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        let mut positions: Vec<usize> = (0..n_inner).collect();
        let n_masked = ((n_inner as f64 * MASKED_SHARE).round() as usize).max(1);
        for i in 0..n_masked.min(n_inner) {
            let other = i + random.below(n_inner - i);
            positions.swap(i, other);
        }
        positions.truncate(n_masked);
        positions.sort_unstable();
        rows.extend(
            positions
                .iter()
                .map(|position| (row * width + first + position) as i64),
        );
    }
    rows
}

/// Ids [B, T] in a row.
fn flat_ids(x: &Tensor) -> Result<Vec<i64>> {
    let on_cpu = x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?;
    Ok(Vec::<i64>::try_from(on_cpu.f_reshape([-1i64])?)?)
}

impl Batch {
    /// What a model is given.
    pub fn input(&self) -> Input<'_> {
        Input {
            ids_bt: &self.ids_bt,
            attention_mask_bt: self.attention_mask_bt.as_ref(),
            positions_bt: self.positions_bt.as_ref(),
        }
    }

    /// The positions [B, T] that losses on states compare: all that hold tokens, or where answers
    /// alone count those that predict them; none for all.
    pub fn compared_bt(&self) -> Option<&Tensor> {
        self.counted_bt.as_ref().or(self.attention_mask_bt.as_ref())
    }

    /// The predicting rows [N, E] of hidden states [B, T, E].
    pub fn rows(&self, hidden_bte: &Tensor) -> Result<Tensor> {
        let (_, n_tokens, n_embed) = hidden_bte.size3()?;
        match &self.rows {
            None => Ok(hidden_bte
                .f_narrow(1, 0, n_tokens - 1)?
                .f_reshape([-1, n_embed])?),
            Some(rows) => Ok(hidden_bte
                .f_reshape([-1, n_embed])?
                .f_index_select(0, rows)?),
        }
    }

    /// Each window's tokens, and which of its positions predict; in order.
    ///
    /// # Errors
    /// `Torch` when the batch cannot be brought to the CPU.
    pub fn windows(&self) -> Result<Vec<WindowRows>> {
        let (n_windows, width) = self.ids_bt.size2()?;
        let ids = flat_ids(&self.ids_bt)?;
        let seen = self.attention_mask_bt.as_ref().map(flat_ids).transpose()?;
        let in_document = self
            .positions_bt
            .as_ref()
            .map(flat_ids)
            .transpose()?
            .unwrap_or_default();
        let rows: Vec<i64> = match &self.rows {
            Some(rows) => flat_ids(rows)?,
            // All but the last of each window.
            None => (0..n_windows * width)
                .filter(|row| (row + 1) % width != 0)
                .collect(),
        };
        let width = width as usize;
        let mut windows: Vec<WindowRows> = Vec::new();
        for (window, ids) in ids.chunks(width.max(1)).enumerate() {
            let seen = seen
                .as_ref()
                .and_then(|seen| seen.get(window * width..(window + 1) * width));
            let n_seen = seen.map_or(width, |seen| seen.iter().filter(|&&seen| seen != 0).count());
            // Absent where attention crosses documents.
            let in_document = in_document
                .get(window * width..window * width + n_seen)
                .unwrap_or_default();
            let begins = in_document
                .iter()
                .enumerate()
                .skip(1)
                .filter(|(_, position)| **position == 0);
            windows.push(WindowRows {
                tokens: ids.iter().take(n_seen).copied().collect(),
                positions: Vec::new(),
                documents: begins.map(|(place, _)| place as i64).collect(),
            });
        }
        for row in rows {
            let (window, position) = (row as usize / width.max(1), row % width as i64);
            if let Some(window) = windows.get_mut(window) {
                window.positions.push(position);
            }
        }
        Ok(windows)
    }

    /// Number of positions that losses on states compare.
    pub fn n_compared(&self) -> i64 {
        self.n_compared
    }

    /// Number of windows.
    pub fn n_windows(&self) -> i64 {
        self.ids_bt.size().first().copied().unwrap_or(0)
    }

    /// Number of predictions.
    pub fn n_rows(&self) -> i64 {
        self.labels_n.size().first().copied().unwrap_or(0)
    }
}

impl Task {
    /// What a model is trained by: its family's task, or where it has no head its states alone.
    ///
    /// # Errors
    /// `Data` as [`Task::of`].
    pub fn of_model(options: &Options, mask: Option<u32>, seed: u64) -> Result<Task> {
        match options.head {
            None => Ok(Task::States),
            Some(_) => Task::of(options.causal, mask, seed),
        }
    }

    /// The task of a family: next tokens for causal models, masked ones for encoders with a head.
    ///
    /// # Errors
    /// `Data` for an encoder whose tokenizer has no mask token.
    pub fn of(causal: bool, mask: Option<u32>, seed: u64) -> Result<Task> {
        match (causal, mask) {
            (true, _) => Ok(Task::NextToken),
            (false, Some(mask)) => Ok(Task::Masked { mask, seed }),
            (false, None) => Err(Error::Data(
                "the tokenizer has no mask token; a masked-language loss needs one".into(),
            )),
        }
    }
}
