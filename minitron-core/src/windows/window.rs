//! One stream of tokens, cut into windows without overlap.

use std::ops::Range;
use std::sync::OnceLock;

use tch::{Device, Tensor};

use super::padding::{fill, onto};
use super::token::{Marks, Token, predicts};
use crate::error::{Error, Present, Result};
use crate::spec::Options;

/// Windows of one length, or one per document. An encoder's carry its special tokens.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Vec<u32>,
    /// What decides what is learned from each token; empty where all count and attention crosses
    /// documents.
    marks: Vec<Marks>,
    /// Where each window begins, and the end of the last.
    bounds: Vec<usize>,
    width: usize,
    n_special_tokens: usize,
    /// Digest of the tokens, for telling data apart.
    digest: OnceLock<String>,
}

/// A window on its own: tokens, special tokens included, and a number that stays its own from epoch
/// to epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its place among the windows of its source.
    pub id: u64,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// What decides what is learned from each token; empty where all count and attention crosses
    /// documents.
    pub marks: Vec<Marks>,
}

impl Windows {
    /// Cuts a stream of ids that all count; a shorter tail is dropped.
    ///
    /// # Errors
    /// `Data` when the stream is empty or shorter than one window.
    pub fn cut(
        tokens: Vec<u32>,
        seq_len: usize,
        max_windows: Option<usize>,
        special_tokens: Option<(u32, u32)>,
        name: &str,
    ) -> Result<Self> {
        let tokens = tokens.into_iter().map(Token::new).collect::<Result<_>>()?;
        Self::cut_stream(tokens, seq_len, max_windows, special_tokens, (name, false))
    }

    /// Cuts a stream; a shorter tail is dropped. `inside_documents`: attention stays inside
    /// documents.
    pub fn cut_stream(
        mut tokens: Vec<Token>,
        seq_len: usize,
        max_windows: Option<usize>,
        special_tokens: Option<(u32, u32)>,
        (name, inside_documents): (&str, bool),
    ) -> Result<Self> {
        if tokens.is_empty() {
            return Err(Error::Data(format!(
                "{name}: no text in it; expected at least one document"
            )));
        }
        if tokens.len() < seq_len {
            return Err(Error::Data(format!(
                "{name}: {} tokens, shorter than one window of {seq_len}; give more text or a \
                 smaller --seq-len",
                tokens.len()
            )));
        }
        let n_windows = (tokens.len() / seq_len).min(max_windows.unwrap_or(usize::MAX));
        if n_windows == 0 {
            return Err(Error::Recipe("samples: expected at least 1".into()));
        }
        tokens.truncate(n_windows * seq_len);
        let (tokens, width, n_special_tokens) = match around(special_tokens)? {
            None => (tokens, seq_len, 0),
            Some((cls, sep)) => {
                let windows = tokens.chunks(seq_len);
                let enclosed = windows.flat_map(|window| [&[cls], window, &[sep]].concat());
                (enclosed.collect(), seq_len + 2, 2)
            }
        };
        let bounds: Vec<usize> = (0..=tokens.len()).step_by(width).collect();
        Ok(Self::of_tokens(
            tokens,
            bounds,
            inside_documents,
            (width, n_special_tokens),
        ))
    }

    /// One window per document of ids that all count, cut at `seq_len` tokens, shorter ones first
    /// so that batches are of a kind; documents of a single token are left out.
    ///
    /// # Errors
    /// `Data` when none is left.
    pub fn of_documents(
        documents: Vec<Vec<u32>>,
        seq_len: usize,
        max_windows: Option<usize>,
        special_tokens: Option<(u32, u32)>,
        name: &str,
    ) -> Result<Self> {
        let mut runs = Vec::with_capacity(documents.len());
        for document in documents {
            let mut run: Vec<Token> = document
                .into_iter()
                .map(Token::new)
                .collect::<Result<_>>()?;
            run.truncate(seq_len);
            runs.push(run);
        }
        Self::of_runs(runs, max_windows, special_tokens, (name, false))
    }

    /// A window for each run of tokens, shorter ones first; those that predict nothing are left
    /// out.
    pub fn of_runs(
        mut runs: Vec<Vec<Token>>,
        max_windows: Option<usize>,
        special_tokens: Option<(u32, u32)>,
        (name, inside_documents): (&str, bool),
    ) -> Result<Self> {
        runs.retain(|run| predicts(run));
        runs.truncate(max_windows.unwrap_or(usize::MAX));
        runs.sort_by_key(Vec::len);
        let Some(longest) = runs.last().map(Vec::len) else {
            return Err(Error::Data(format!(
                "{name}: no document of two tokens or more in it"
            )));
        };
        let around = around(special_tokens)?;
        let n_special_tokens = if around.is_some() { 2 } else { 0 };
        let (mut tokens, mut bounds) = (Vec::new(), vec![0]);
        for run in runs {
            tokens.extend(around.map(|(cls, _)| cls));
            tokens.extend(run);
            tokens.extend(around.map(|(_, sep)| sep));
            bounds.push(tokens.len());
        }
        Ok(Self::of_tokens(
            tokens,
            bounds,
            inside_documents,
            (longest + n_special_tokens, n_special_tokens),
        ))
    }

    fn of_tokens(
        tokens: Vec<Token>,
        bounds: Vec<usize>,
        inside_documents: bool,
        (width, n_special_tokens): (usize, usize),
    ) -> Self {
        let mut marks = Vec::new();
        // Most text has none, and a mark for each token of it would be kept for nothing.
        let deciding = tokens
            .iter()
            .map(|token| token.marks().that_decide(inside_documents));
        if deciding.clone().any(|mark| mark != Marks::default()) {
            marks.extend(deciding);
        }
        let tokens = tokens.into_iter().map(Token::id).collect();
        Windows {
            tokens,
            marks,
            bounds,
            width,
            n_special_tokens,
            digest: OnceLock::new(),
        }
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// Tokens of a window, special tokens included.
    ///
    /// # Errors
    /// `Internal` where there is no such window.
    pub fn window(&self, window: usize) -> Result<&[u32]> {
        self.tokens
            .get(self.span(window)?)
            .present("a window's tokens")
    }

    fn span(&self, window: usize) -> Result<Range<usize>> {
        match (self.bounds.get(window), self.bounds.get(window + 1)) {
            (Some(&from), Some(&to)) => Ok(from..to),
            _ => Err(Error::Internal(format!(
                "there is no window {window} of {}",
                self.len()
            ))),
        }
    }

    /// What decides what is learned from a window's tokens; empty where all count and attention
    /// crosses documents.
    ///
    /// # Errors
    /// `Internal` where there is no such window.
    pub fn marks(&self, window: usize) -> Result<&[Marks]> {
        let span = self.span(window)?;
        if self.marks.is_empty() {
            Ok(&[])
        } else {
            self.marks.get(span).present("a window's marks")
        }
    }

    /// Some of them, in this order.
    ///
    /// # Errors
    /// `Internal` where there is no such window.
    pub fn chosen(&self, windows: &[usize]) -> Result<Self> {
        let (mut tokens, mut marks, mut bounds) = (Vec::new(), Vec::new(), vec![0]);
        for &window in windows {
            tokens.extend_from_slice(self.window(window)?);
            marks.extend_from_slice(self.marks(window)?);
            bounds.push(tokens.len());
        }
        let widths = bounds.iter().zip(bounds.iter().skip(1));
        let width = widths.map(|(from, to)| to - from).max().unwrap_or(0);
        Ok(Windows {
            tokens,
            marks,
            bounds,
            width,
            n_special_tokens: self.n_special_tokens,
            digest: OnceLock::new(),
        })
    }

    /// A window on its own, under a number.
    pub fn sample(&self, window: usize, id: u64) -> Result<Sample> {
        Ok(Sample {
            id,
            tokens: self.window(window)?.to_vec(),
            marks: self.marks(window)?.to_vec(),
        })
    }

    /// Runs of at most `batch_size` windows of one length, in order.
    pub fn batches(&self, batch_size: usize) -> Vec<Range<usize>> {
        let mut batches: Vec<Range<usize>> = Vec::new();
        let mut last_width = None;
        for (window, (from, to)) in self
            .bounds
            .iter()
            .zip(self.bounds.iter().skip(1))
            .enumerate()
        {
            let width = Some(to - from);
            match batches.last_mut() {
                Some(last) if last.len() < batch_size.max(1) && width == last_width => {
                    last.end += 1
                }
                _ => batches.push(window..window + 1),
            }
            last_width = width;
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

    /// Tokens of the longest window, special tokens included.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens in all windows, special tokens included.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// special tokens per window.
    pub fn n_special_tokens(&self) -> usize {
        self.n_special_tokens
    }

    /// Digest of all tokens and of what is learned from them.
    pub fn digest(&self) -> &str {
        self.digest
            .get_or_init(|| digest_of(&self.tokens, &self.marks, &self.bounds))
    }

    /// Refuses windows that a model has no positions for, before any work.
    ///
    /// # Errors
    /// `Recipe` naming the longest possible `seq_len`.
    pub fn check_fits(&self, options: &Options) -> Result<()> {
        fits(self.width, self.n_special_tokens, options.max_positions)
    }

    /// Token ids [B, T] of the given windows; shorter ones are filled up with token 0 on the right.
    pub fn batch(
        &self,
        windows: impl IntoIterator<Item = usize>,
        device: Device,
    ) -> Result<Tensor> {
        let chosen: Vec<&[u32]> = windows
            .into_iter()
            .map(|window| self.window(window))
            .collect::<Result<_>>()?;
        Ok(fill(&chosen, device)?.0)
    }
}

impl Windows {
    /// Each token's position in its document [B, T], where attention stays inside documents and a
    /// window holds several.
    pub fn positions(
        &self,
        windows: impl IntoIterator<Item = usize>,
        device: Device,
    ) -> Result<Option<Tensor>> {
        let marks: Vec<&[Marks]> = windows
            .into_iter()
            .map(|window| self.marks(window))
            .collect::<Result<_>>()?;
        positions_in_documents(&marks, device)
    }
}

/// Each token's position in its document [B, T], padding left zero-based by its sequence's last
/// document; none where every sequence is one document.
pub(super) fn positions_in_documents(marks: &[&[Marks]], device: Device) -> Result<Option<Tensor>> {
    let mut inside = marks.iter().flat_map(|marks| marks.iter().skip(1));
    if !inside.any(|mark| mark.begins_document()) {
        return Ok(None);
    }
    let width = marks.iter().map(|marks| marks.len()).max().unwrap_or(0);
    let mut positions: Vec<i64> = Vec::with_capacity(marks.len().saturating_mul(width));
    for marks in marks {
        let mut position = 0;
        for place in 0..width {
            if place == 0 || marks.get(place).is_some_and(|mark| mark.begins_document()) {
                position = 0;
            }
            positions.push(position);
            position += 1;
        }
    }
    let positions_bt = onto(&positions, device)?.f_view([marks.len() as i64, width as i64])?;
    Ok(Some(positions_bt))
}

/// Refuses a window of `width` tokens, special tokens included, for `max_positions`.
pub fn fits(width: usize, n_special_tokens: usize, max_positions: usize) -> Result<()> {
    if width <= max_positions {
        return Ok(());
    }
    let longest = max_positions.saturating_sub(n_special_tokens);
    let found = width.saturating_sub(n_special_tokens);
    Err(Error::Recipe(format!(
        "seq_len: {found} is longer than the model's positions allow; at most {longest}"
    )))
}

/// The special tokens around a window.
fn around(special_tokens: Option<(u32, u32)>) -> Result<Option<(Token, Token)>> {
    special_tokens
        .map(|(cls, sep)| Ok((Token::new(cls)?, Token::new(sep)?)))
        .transpose()
}

/// Of tokens, marks where there are any, and cuts.
fn digest_of(tokens: &[u32], marks: &[Marks], bounds: &[usize]) -> String {
    let bounds: Vec<u32> = bounds.iter().map(|&bound| bound as u32).collect();
    let mut all = crate::digest::of_tokens(tokens) + &crate::digest::of_tokens(&bounds);
    if !marks.is_empty() {
        let marks: Vec<u32> = marks.iter().map(|mark| u32::from(mark.bits())).collect();
        all += &crate::digest::of_tokens(&marks);
    }
    crate::digest::of_text(&all)
}
