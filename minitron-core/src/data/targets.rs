//! What a batch asks of a language model: its inputs, the rows that predict, and the right answers.

use tch::{Device, Tensor};

use super::windows::{Piece, Windows, ids_of};
use crate::error::{Error, Result};
use crate::random::SplitMix;

/// Share of an encoder's positions that are masked.
const MASKED_SHARE: f64 = 0.15;

/// Which task windows stand for. B batch, T tokens, E embed, N rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Position t predicts token t + 1: T − 1 rows per window.
    NextToken,
    /// 15 % of the positions between the brackets are replaced by this token and predicted.
    Masked {
        /// The model's mask token.
        mask: u32,
        /// Which positions: a function of this and the window's number alone, the same in every epoch.
        seed: u64,
    },
}

/// One batch.
#[derive(Debug)]
pub struct Targets {
    /// Inputs [B, T].
    pub ids_bt: Tensor,
    /// Answers \[N\].
    pub labels_n: Tensor,
    rows: Option<Tensor>,
}

impl Task {
    /// The batch of some windows.
    pub fn batch(self, windows: &Windows, chosen: &[usize], device: Device) -> Result<Targets> {
        let piece = |&window: &usize| Piece { id: window as u64, tokens: windows.window(window).to_vec() };
        self.batch_of(&chosen.iter().map(piece).collect::<Vec<_>>(), windows.n_brackets(), device)
    }

    /// The batch of some pieces, each with as many bracket tokens.
    pub fn batch_of(self, pieces: &[Piece], n_brackets: usize, device: Device) -> Result<Targets> {
        let ids_bt = ids_of(&pieces.iter().map(|piece| piece.tokens.as_slice()).collect::<Vec<_>>(), device)?;
        let (_, n_tokens) = ids_bt.size2()?;
        match self {
            Task::NextToken if !alike(pieces) => {
                let width = n_tokens as usize;
                let rows_of = |(row, piece): (usize, &Piece)| {
                    let n_rows = piece.tokens.len().saturating_sub(1);
                    (0..n_rows).map(move |position| (row * width + position) as i64)
                };
                let rows: Vec<i64> = pieces.iter().enumerate().flat_map(rows_of).collect();
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(device)?;
                let labels_n = ids_bt.f_reshape([-1i64])?.f_index_select(0, &rows.f_add_scalar(1)?)?;
                Ok(Targets { ids_bt, labels_n, rows: Some(rows) })
            }
            Task::NextToken => {
                let labels_n = ids_bt.f_narrow(1, 1, n_tokens - 1)?.f_reshape([-1i64])?;
                Ok(Targets { ids_bt, labels_n, rows: None })
            }
            Task::Masked { mask, seed } => {
                let rows = masked_rows(pieces, n_brackets, seed);
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(device)?;
                let flat = ids_bt.f_reshape([-1i64])?;
                let labels_n = flat.f_index_select(0, &rows)?;
                let masked = flat.f_index_fill(0, &rows, i64::from(mask))?.f_view_as(&ids_bt)?;
                Ok(Targets { ids_bt: masked, labels_n, rows: Some(rows) })
            }
        }
    }
}

/// Whether all windows have one length, so that no position is mere filling.
fn alike(pieces: &[Piece]) -> bool {
    let mut lengths = pieces.iter().map(|piece| piece.tokens.len());
    let first = lengths.next();
    lengths.all(|length| Some(length) == first)
}

/// Positions in the flattened batch; at least one per window.
fn masked_rows(pieces: &[Piece], n_brackets: usize, seed: u64) -> Vec<i64> {
    let width = pieces.iter().map(|piece| piece.tokens.len()).max().unwrap_or(0);
    let first = n_brackets / 2;
    let mut rows = Vec::new();
    for (row, piece) in pieces.iter().enumerate() {
        let n_inner = piece.tokens.len().saturating_sub(n_brackets);
        let mut random = SplitMix::new(seed ^ piece.id.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        let mut positions: Vec<usize> = (0..n_inner).collect();
        let n_masked = ((n_inner as f64 * MASKED_SHARE).round() as usize).max(1);
        for i in 0..n_masked.min(n_inner) {
            let other = i + random.below(n_inner - i);
            positions.swap(i, other);
        }
        positions.truncate(n_masked);
        positions.sort_unstable();
        rows.extend(positions.iter().map(|position| (row * width + first + position) as i64));
    }
    rows
}

impl Targets {
    /// The predicting rows [N, E] of hidden states [B, T, E].
    pub fn rows(&self, hidden_bte: &Tensor) -> Result<Tensor> {
        let (_, n_tokens, n_embed) = hidden_bte.size3()?;
        match &self.rows {
            None => Ok(hidden_bte.f_narrow(1, 0, n_tokens - 1)?.f_reshape([-1, n_embed])?),
            Some(rows) => Ok(hidden_bte.f_reshape([-1, n_embed])?.f_index_select(0, rows)?),
        }
    }

    /// Number of predictions.
    pub fn n_rows(&self) -> i64 {
        self.labels_n.size().first().copied().unwrap_or(0)
    }
}

impl Task {
    /// The task of a family: next tokens for causal models, masked ones for encoders with a head.
    ///
    /// # Errors
    /// `Data` for an encoder whose tokenizer has no mask token.
    pub fn of(causal: bool, mask: Option<u32>, seed: u64) -> Result<Task> {
        match (causal, mask) {
            (true, _) => Ok(Task::NextToken),
            (false, Some(mask)) => Ok(Task::Masked { mask, seed }),
            (false, None) => {
                Err(Error::Data("the tokenizer has no mask token; a masked-language loss needs one".into()))
            }
        }
    }
}
