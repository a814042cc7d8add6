//! One stream of tokens, cut into windows without overlap.

use tch::{Device, Kind, Tensor};

use super::tokenizer::Tokenizer;
use crate::blueprint::Options;
use crate::error::{Error, Result};

/// Windows of equal length. An encoder's carry its brackets.
#[derive(Debug)]
pub struct Windows {
    tokens: Vec<u32>,
    width: usize,
    n_brackets: usize,
    /// Digest of the tokens, for telling data apart.
    digest: String,
}

impl Windows {
    /// Cuts a stream; a shorter tail is dropped.
    ///
    /// # Errors
    /// `Data` when the stream is empty or shorter than one window.
    pub fn cut(
        mut tokens: Vec<u32>,
        seq_len: usize,
        max_windows: Option<usize>,
        tokenizer: &Tokenizer,
        name: &str,
    ) -> Result<Self> {
        if tokens.is_empty() {
            return Err(Error::Data(format!("{name}: no text in it; expected at least one document")));
        }
        if tokens.len() < seq_len {
            return Err(Error::Data(format!(
                "{name}: {} tokens, shorter than one window of {seq_len}; give more text or a smaller --seq-len",
                tokens.len()
            )));
        }
        let n_windows = (tokens.len() / seq_len).min(max_windows.unwrap_or(usize::MAX));
        if n_windows == 0 {
            return Err(Error::Recipe("samples: expected at least 1".into()));
        }
        tokens.truncate(n_windows * seq_len);
        let (tokens, width, n_brackets) = match tokenizer.brackets {
            None => (tokens, seq_len, 0),
            Some((cls, sep)) => {
                let bracketed = |window: &[u32]| [&[cls], window, &[sep]].concat();
                (tokens.chunks(seq_len).flat_map(bracketed).collect(), seq_len + 2, 2)
            }
        };
        let digest = crate::digest::of_tokens(&tokens);
        Ok(Windows { tokens, width, n_brackets, digest })
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.width.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens per window, brackets included.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens in all windows, brackets included.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Bracket tokens per window.
    pub fn n_brackets(&self) -> usize {
        self.n_brackets
    }

    /// Digest of all tokens.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Refuses windows that a model has no positions for, before any work.
    ///
    /// # Errors
    /// `Recipe` naming the longest possible `seq_len`.
    pub fn check_fits(&self, options: &Options) -> Result<()> {
        if self.width <= options.max_positions {
            return Ok(());
        }
        let longest = options.max_positions.saturating_sub(self.n_brackets);
        let found = self.width - self.n_brackets;
        Err(Error::Recipe(format!("seq_len: {found} is longer than the model's positions allow; at most {longest}")))
    }

    /// Token ids [B, T] of the given windows.
    pub fn batch(&self, windows: impl IntoIterator<Item = usize>, device: Device) -> Result<Tensor> {
        let mut ids: Vec<i64> = Vec::new();
        let mut n_batch = 0i64;
        for window in windows {
            let from = window * self.width;
            let slice = self.tokens.get(from..from + self.width);
            let slice = slice.ok_or_else(|| Error::Internal(format!("window {window} of {}", self.len())))?;
            ids.extend(slice.iter().map(|&id| i64::from(id)));
            n_batch += 1;
        }
        let ids_bt = Tensor::f_from_slice(&ids)?.f_view([n_batch, self.width as i64])?;
        Ok(ids_bt.f_to_kind(Kind::Int64)?.f_to_device(device)?)
    }
}
