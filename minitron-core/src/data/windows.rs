//! One stream of tokens, cut into windows without overlap.

use std::sync::OnceLock;

use tch::{Device, Tensor};

use super::filling::fill;
use super::tokenizer::Tokenizer;
use crate::blueprint::Options;
use crate::error::{Error, Result};

/// Windows of one length, or one per document. An encoder's carry its brackets.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Vec<u32>,
    /// Where each window begins, and the end of the last.
    bounds: Vec<usize>,
    width: usize,
    n_brackets: usize,
    /// Digest of the tokens, for telling data apart.
    digest: OnceLock<String>,
}

/// A window on its own: tokens, brackets included, and a number that stays its own from epoch to epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its place among the windows of its source.
    pub id: u64,
    /// Token ids.
    pub tokens: Vec<u32>,
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
        let bounds: Vec<usize> = (0..=tokens.len()).step_by(width).collect();
        Ok(Windows { tokens, bounds, width, n_brackets, digest: OnceLock::new() })
    }

    /// One window per document, cut at `seq_len` tokens, shorter ones first so that batches are of a kind; documents of
    /// a single token are left out.
    ///
    /// # Errors
    /// `Data` when none is left.
    pub fn of_documents(
        mut documents: Vec<Vec<u32>>,
        seq_len: usize,
        max_windows: Option<usize>,
        tokenizer: &Tokenizer,
        name: &str,
    ) -> Result<Self> {
        documents.retain(|document| document.len() > 1);
        documents.truncate(max_windows.unwrap_or(usize::MAX));
        documents.iter_mut().for_each(|document| document.truncate(seq_len));
        documents.sort_by_key(Vec::len);
        let Some(longest) = documents.last().map(Vec::len) else {
            return Err(Error::Data(format!("{name}: no document of two tokens or more in it")));
        };
        let n_brackets = if tokenizer.brackets.is_some() { 2 } else { 0 };
        let (mut tokens, mut bounds) = (Vec::new(), vec![0]);
        for document in documents {
            tokens.extend(tokenizer.brackets.map(|(cls, _)| cls));
            tokens.extend(document);
            tokens.extend(tokenizer.brackets.map(|(_, sep)| sep));
            bounds.push(tokens.len());
        }
        Ok(Windows { tokens, bounds, width: longest + n_brackets, n_brackets, digest: OnceLock::new() })
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// Tokens of a window, brackets included.
    pub fn window(&self, window: usize) -> &[u32] {
        let bounds = self.bounds.get(window).zip(self.bounds.get(window + 1));
        bounds.and_then(|(&from, &to)| self.tokens.get(from..to)).unwrap_or_default()
    }

    /// Runs of at most `batch_size` windows of one length, in order.
    pub fn batches(&self, batch_size: usize) -> Vec<std::ops::Range<usize>> {
        let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
        for window in 0..self.len() {
            let alike = |start: usize| self.window(start).len() == self.window(window).len();
            match batches.last_mut() {
                Some(last) if last.len() < batch_size.max(1) && alike(last.start) => last.end += 1,
                _ => batches.push(window..window + 1),
            }
        }
        batches
    }

    /// Mean tokens per window, rounded up.
    pub fn mean_width(&self) -> usize {
        self.tokens.len().div_ceil(self.len().max(1))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens of the longest window, brackets included.
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
        self.digest.get_or_init(|| digest_of(&self.tokens, &self.bounds))
    }

    /// Refuses windows that a model has no positions for, before any work.
    ///
    /// # Errors
    /// `Recipe` naming the longest possible `seq_len`.
    pub fn check_fits(&self, options: &Options) -> Result<()> {
        fits(self.width, self.n_brackets, options.max_positions)
    }

    /// Token ids [B, T] of the given windows; shorter ones are filled up with token 0 on the right.
    pub fn batch(&self, windows: impl IntoIterator<Item = usize>, device: Device) -> Result<Tensor> {
        let chosen: Vec<&[u32]> = windows.into_iter().map(|window| self.window(window)).collect();
        Ok(fill(&chosen, device)?.0)
    }
}

/// Refuses a window of `width` tokens, brackets included, for `max_positions`.
pub(super) fn fits(width: usize, n_brackets: usize, max_positions: usize) -> Result<()> {
    if width <= max_positions {
        return Ok(());
    }
    let longest = max_positions.saturating_sub(n_brackets);
    let found = width.saturating_sub(n_brackets);
    Err(Error::Recipe(format!("seq_len: {found} is longer than the model's positions allow; at most {longest}")))
}

/// Of tokens and cuts.
fn digest_of(tokens: &[u32], bounds: &[usize]) -> String {
    let bounds: Vec<u32> = bounds.iter().map(|&bound| bound as u32).collect();
    let (tokens, bounds) = (crate::digest::of_tokens(tokens), crate::digest::of_tokens(&bounds));
    crate::digest::of_text(&(tokens + &bounds))
}
