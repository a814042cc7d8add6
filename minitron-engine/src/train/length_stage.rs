//! Longer windows for the last steps of a training.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::DataLoader;
use minitron_core::error::{Error, Result};

/// The last share of the steps, and how long their windows are: `0.03:4096`. Steps have as many
/// tokens as before, in fewer windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LengthStage {
    /// Of all steps.
    pub share: f64,
    /// Tokens per window.
    pub seq_len: usize,
}

/// The text of a length stage, and how a step of it is divided.
#[derive(Debug, Clone, Copy)]
pub struct LongWindows<'a> {
    /// Gives the longer windows.
    pub loader: &'a RefCell<DataLoader>,
    /// The last share of the steps.
    pub share: f64,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Forward passes per step.
    pub accumulate: usize,
}

impl LengthStage {
    /// Windows per pass and passes per step that have the tokens of so many windows and passes of
    /// `seq_len`: no pass has more tokens than before, unless it is of one window.
    ///
    /// # Errors
    /// `Recipe` for windows that are no longer than before, or do not divide a step.
    pub fn passes(
        &self,
        (batch_size, accumulate): (usize, usize),
        seq_len: usize,
    ) -> Result<Passes> {
        let own = self.seq_len;
        if own <= seq_len {
            return Err(Error::Recipe(format!(
                "length_stage: expected windows of more than seq_len {seq_len}, got {own}"
            )));
        }
        let per_pass = batch_size.saturating_mul(seq_len);
        let per_step = per_pass.saturating_mul(accumulate);
        if per_step == 0 || !per_step.is_multiple_of(own) {
            return Err(Error::Recipe(format!(
                "length_stage: a step has {per_step} tokens, which are no whole number of windows \
                 of {own}; take a length that divides them, or another batch_size"
            )));
        }
        let n_windows = per_step / own;
        let mut batch_size = (per_pass / own).clamp(1, n_windows);
        while !n_windows.is_multiple_of(batch_size) {
            batch_size -= 1;
        }
        Ok(Passes {
            batch_size,
            accumulate: n_windows / batch_size,
        })
    }
}

/// How a step is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Forward passes per step.
    pub accumulate: usize,
}

impl LongWindows<'_> {
    /// Whether a step, counted from 1, is in the stage, which has at least one.
    pub(super) fn has(&self, step: u64, n_steps: u64) -> bool {
        let n_long = (self.share * n_steps as f64).ceil() as u64;
        step > n_steps.saturating_sub(n_long)
    }
}

impl fmt::Display for LengthStage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.share, self.seq_len)
    }
}

impl FromStr for LengthStage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':');
        let parts = parts.map(|(share, len)| (share.trim().parse(), len.trim().parse()));
        match parts {
            Some((Ok(share), Ok(seq_len))) if share > 0.0 && share < 1.0 && seq_len >= 2 => {
                Ok(LengthStage { share, seq_len })
            }
            _ => Err(Error::Recipe(format!(
                "length_stage: expected a share of the steps between 0 and 1 and tokens per \
                 window, as in 0.03:4096, got `{text}`"
            ))),
        }
    }
}

impl TryFrom<String> for LengthStage {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LengthStage> for String {
    fn from(stage: LengthStage) -> String {
        stage.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(text: &str, of: (usize, usize), seq_len: usize) -> Result<(usize, usize)> {
        let found = text.parse::<LengthStage>()?.passes(of, seq_len)?;
        Ok((found.batch_size, found.accumulate))
    }

    #[test]
    fn a_step_keeps_its_tokens() {
        for (of, seq_len, long, expected) in [
            ((8, 1), 512, 4096, (1, 1)),
            ((8, 4), 512, 2048, (2, 4)),
            // A pass of one window has more tokens than one had before.
            ((2, 8), 512, 4096, (1, 2)),
            // Six windows of three halves of the length: four, which twos divide.
            ((3, 2), 512, 768, (2, 2)),
        ] {
            let found = passes(&format!("0.03:{long}"), of, seq_len).unwrap();
            assert_eq!(found, expected, "{of:?} {seq_len} {long}");
            let (windows, before) = (found.0 * found.1, of.0 * of.1);
            assert_eq!(windows * long, before * seq_len);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "4096", "0:4096", "1:4096", "0.1:1", "0.1:x", "nan:64"] {
            let error = text.parse::<LengthStage>().unwrap_err();
            assert!(error.is_usage() && error.to_string().contains("0.03:4096"));
        }
        let error = passes("0.1:512", (8, 1), 512).unwrap_err().to_string();
        assert!(error.contains("more than seq_len 512, got 512"), "{error}");
        let error = passes("0.1:3000", (8, 1), 512).unwrap_err().to_string();
        assert!(error.contains("4096 tokens, which are no whole"), "{error}");
    }

    #[test]
    fn the_stage_is_the_last_steps() {
        let windows = std::sync::Arc::new(
            minitron_core::windows::Windows::cut(vec![0; 8], 4, None, None, "none").unwrap(),
        );
        let loader = RefCell::new(DataLoader::of_windows(windows, 0));
        let stage = |share| LongWindows {
            loader: &loader,
            share,
            batch_size: 1,
            accumulate: 1,
        };
        let first = |share, n| (1..=n).find(|&step| stage(share).has(step, n));
        assert_eq!(first(0.03, 100), Some(98));
        assert_eq!(first(0.5, 10), Some(6));
        assert_eq!(first(0.001, 10), Some(10));
    }
}
